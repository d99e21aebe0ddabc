//! The text of a server's address: what it says, and what of it may be shown.
//!
//! Read by ourselves and not as a URL is: a URL's parser drops what it does not know, and repeats what it does not understand.

use std::net::Ipv6Addr;

/// The longest name of a host, in bytes, as DNS has it.
const MAX_HOST_LEN: usize = 255;

/// What an address says. It has no `Debug`, which would show the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ParsedAddress {
    /// Whether the scheme asks for TLS; `None` without a scheme.
    pub(crate) tls: Option<bool>,
    pub(crate) target: Target,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) db: Option<u32>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// An IPv6 address is without its brackets.
    Host { host: String, port: Option<u16> },
    /// The path of a Unix socket.
    Socket(String),
}

/// Reads an address.
///
/// # Errors
/// What is wrong with it, in words that repeat nothing of the address that may be a secret.
pub(crate) fn parse(text: &str) -> Result<ParsedAddress, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let (scheme, rest) = split_scheme(text);
    let scheme = scheme.map(str::to_ascii_lowercase);
    match scheme.as_deref() {
        None if text.starts_with("//") => {
            Err("what stands before '//' is missing, as in redis://host".to_owned())
        }
        None if is_path(text) => parse_socket(text, None),
        None => parse_host(rest, None),
        Some("redis" | "valkey") => parse_host(rest, Some(false)),
        Some("rediss" | "valkeys") => parse_host(rest, Some(true)),
        Some("unix" | "redis+unix" | "valkey+unix") => parse_socket(rest, Some(false)),
        Some(_) => Err("its scheme is none of redis, rediss, valkey, valkeys, unix".to_owned()),
    }
}

/// Returns the address without what may be a secret: its scheme, host, port and database, or the path of its socket. Where it
/// cannot be read, the scheme and the host up to the first character that cannot be in one.
pub(crate) fn shown(text: &str) -> String {
    let (scheme, rest) = split_scheme(text);
    let is_bare_path = is_path(text) && !text.starts_with("//");
    let is_socket = scheme.map_or(is_bare_path, |scheme| scheme.ends_with("unix"));
    let shown = if is_socket {
        shown_socket(rest)
    } else {
        shown_host(rest)
    };
    match scheme {
        Some(scheme) => format!("{scheme}://{shown}"),
        None => shown,
    }
}

fn split_scheme(text: &str) -> (Option<&str>, &str) {
    match text.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
        _ => (None, text),
    }
}

/// Whether this can stand before a `://`. If not, that is a part of a password, for example.
fn is_scheme(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Whether an address without a scheme is the path of a socket.
fn is_path(text: &str) -> bool {
    text.starts_with('/')
}

fn parse_host(rest: &str, tls: Option<bool>) -> Result<ParsedAddress, String> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if rest.contains(',') {
        return Err(
            "a ',' separates addresses, each of which is passed by itself, as in \
             `Config::new(text.split(','))`; options behind one are settings of `Config`, and in a \
             user name or password it is written %2C"
                .to_owned(),
        );
    }
    if tail.contains('@') {
        return Err(
            "in a user name or password '/', '?' and '#' are written %2F, %3F and %23".to_owned(),
        );
    }
    let (login, host_port) = match authority.rsplit_once('@') {
        Some((login, host_port)) => (Some(login), host_port),
        None => (None, authority),
    };
    if login.is_some_and(|login| login.contains(is_space)) {
        return Err("in a user name or password white space is written as %20".to_owned());
    }
    let (host, port) = parse_host_port(host_port)?;
    let (path, query, fragment) = split_tail(tail);
    if let Some(fragment) = fragment {
        return Err(match fragment {
            "insecure" => "`#insecure` is not supported: set the authority with `Tls::ca`",
            _ => "what stands behind '#' has no meaning here",
        }
        .to_owned());
    }
    if let Some(query) = query {
        return Err(refused_query(
            query,
            "of a TCP address: the database stands behind '/', user and password before '@', all else is set with `Config`",
        ));
    }
    let db = match path.trim_matches('/') {
        "" => None,
        db => Some(parse_db(db)?),
    };
    let (username, password) = match login {
        None => (None, None),
        Some(login) => {
            let (username, password) = match login.split_once(':') {
                Some((username, password)) => (username, Some(password)),
                None => (login, None),
            };
            let username = decode(username)?;
            let password = password.map(decode).transpose()?;
            (Some(username).filter(|name| !name.is_empty()), password)
        }
    };
    Ok(ParsedAddress {
        tls,
        target: Target::Host { host, port },
        username,
        password,
        db,
    })
}

fn parse_host_port(text: &str) -> Result<(String, Option<u16>), String> {
    if text.is_empty() {
        return Err("no host".to_owned());
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let parsed = bracketed.split_once(']');
        let parsed = parsed.and_then(|(ip, after)| Some((ip.parse::<Ipv6Addr>().ok()?, after)));
        let Some((ip, after)) = parsed else {
            return Err("between '[' and ']' stands no IPv6 address".to_owned());
        };
        if ip.is_unspecified() {
            return Err(NO_TARGET.to_owned());
        }
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return Err("behind ']' stands no port".to_owned()),
        };
        return Ok((ip.to_string(), port));
    }
    if is_bare_ipv6(text) {
        return Err("an IPv6 address stands in brackets, as in [::1]:6379".to_owned());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    if host.is_empty() {
        return Err("no host".to_owned());
    }
    if host.len() > MAX_HOST_LEN || !host.bytes().all(is_host_byte) {
        return Err(
            "a host has letters, digits, '-', '.' and '_' of ASCII alone (a name with others in its xn-- form)"
                .to_owned(),
        );
    }
    if host == "0.0.0.0" {
        return Err(NO_TARGET.to_owned());
    }
    Ok((host.to_owned(), port.map(parse_port).transpose()?))
}

const NO_TARGET: &str = "it is where servers listen, and no address to connect to";

/// Whether it is an IPv6 address without brackets, perhaps with a port or wrong: a host has one `:` at most, before its port.
fn is_bare_ipv6(text: &str) -> bool {
    let is_ip_byte = |b: u8| b.is_ascii_hexdigit() || b":.".contains(&b);
    text.matches(':').count() > 1 && text.bytes().all(is_ip_byte)
}

/// The words repeat nothing but a number: what stands in a port's place may be a password.
fn parse_port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) => Err("port 0".to_owned()),
        Ok(port) if is_number => Ok(port),
        _ if is_number && text.len() == 5 => Err(format!("port {text} is above 65535")),
        _ => Err("what stands behind the host's ':' is no port".to_owned()),
    }
}

fn parse_db(text: &str) -> Result<u32, String> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    let db = text.parse().ok().filter(|_| is_number);
    db.ok_or_else(|| "the database is no number".to_owned())
}

fn parse_socket(rest: &str, tls: Option<bool>) -> Result<ParsedAddress, String> {
    if cfg!(not(unix)) {
        return Err("there are no Unix sockets on this platform".to_owned());
    }
    let (path, query, fragment) = split_tail(rest);
    if fragment.is_some() {
        return Err("in a path '#' is written %23".to_owned());
    }
    if !is_path(path) {
        return Err(
            "the path of a socket begins with '/', as in unix:///run/redis.sock".to_owned(),
        );
    }
    if path.contains(',') {
        return Err(
            "a ',' separates addresses, each of which is passed by itself; in a path it is written %2C"
                .to_owned(),
        );
    }
    if path.contains(is_space) {
        return Err("in a path white space is written as %20".to_owned());
    }
    let mut parsed = ParsedAddress {
        tls,
        target: Target::Socket(decode(path)?),
        username: None,
        password: None,
        db: None,
    };
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = || decode(&value.replace('+', " "));
        match name {
            "db" => parsed.db = Some(parse_db(&value()?)?),
            "user" => parsed.username = Some(value()?),
            "pass" => parsed.password = Some(value()?),
            _ => {
                return Err(refused_query(
                    pair,
                    "of a socket: they are db, user and pass",
                ));
            }
        }
    }
    Ok(parsed)
}

/// Splits what follows a host, or a path, at its `?` and `#`.
fn split_tail(tail: &str) -> (&str, Option<&str>, Option<&str>) {
    let (tail, fragment) = match tail.split_once('#') {
        Some((tail, fragment)) => (tail, Some(fragment)),
        None => (tail, None),
    };
    match tail.split_once('?') {
        Some((path, query)) => (path, Some(query), fragment),
        None => (tail, None, fragment),
    }
}

/// The words for parameters that are not taken. Their names are told, and what may be one of a secret is not.
fn refused_query(query: &str, why: &str) -> String {
    let is_name = |name: &str| {
        (1..=24).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphabetic() || b"_-".contains(&b))
    };
    let names = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (is_name(name) && !value.trim_matches('=').is_empty()).then(|| format!("`{name}`"))
    });
    match names.collect::<Vec<_>>() {
        names if names.is_empty() => format!("what stands behind '?' is no parameter {why}"),
        names => format!("{} is no parameter {why}", names.join(", ")),
    }
}

/// Reads what is written with `%` and two hexadecimal digits.
fn decode(text: &str) -> Result<String, String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let code = match (byte, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        decoded.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(decoded).map_err(|_| "what is written with '%' is not UTF-8".to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn shown_host(rest: &str) -> String {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (login, host_port) = match authority.rsplit_once('@') {
        Some((login, host_port)) => (Some(login), host_port),
        None => (None, authority),
    };
    // Where a login ends that is not written as it should be, nobody knows: an '@' may be a part of it.
    let is_odd = |login: &str| login.contains(|c| c == ',' || is_space(c));
    if tail.contains('@') || login.is_some_and(is_odd) {
        return HIDDEN.to_owned();
    }
    if host_port.parse::<Ipv6Addr>().is_ok() {
        return host_port.to_owned(); // without the brackets that it needs
    }
    if parse_host_port(host_port).is_ok() {
        return match parse_host(rest, None) {
            Ok(ParsedAddress { db: Some(db), .. }) => format!("{host_port}/{db}"),
            _ => host_port.to_owned(),
        };
    }
    // A password may begin as a port does.
    let end = host_port.bytes().position(|byte| !is_host_byte(byte));
    match &host_port[..end.unwrap_or(host_port.len())] {
        "" if rest.is_empty() => String::new(),
        "" => HIDDEN.to_owned(),
        host => host.chars().take(MAX_HOST_LEN).collect(),
    }
}

fn shown_socket(rest: &str) -> String {
    let is_end = |c: char| matches!(c, '?' | '#' | ',') || is_space(c);
    let path = &rest[..rest.find(is_end).unwrap_or(rest.len())];
    // A login before the path is none of a socket's address, and yet may be written there.
    let path = match path.rsplit_once('@') {
        Some((_, path)) if !is_path(rest) => path,
        _ => path,
    };
    if is_path(path) {
        path.to_owned()
    } else {
        HIDDEN.to_owned()
    }
}

/// Stands where nothing may be shown.
const HIDDEN: &str = "..";

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text)
            .err()
            .unwrap_or_else(|| panic!("{text} is read"))
    }

    #[test]
    fn address_in_each_form_is_read() {
        let host = |host: &str, port| Target::Host {
            host: host.to_owned(),
            port,
        };
        let socket = |path: &str| Target::Socket(path.to_owned());
        for (text, tls, target, db) in [
            ("h", None, host("h", None), None),
            (
                "redis_1.int-ernal:7",
                None,
                host("redis_1.int-ernal", Some(7)),
                None,
            ),
            ("h:1/3", None, host("h", Some(1)), Some(3)),
            ("[::1]", None, host("::1", None), None),
            ("[0:0::1]:7", None, host("::1", Some(7)), None),
            ("redis://h/", Some(false), host("h", None), None),
            ("REDIS://h/0", Some(false), host("h", None), Some(0)),
            ("valkeys://h:1", Some(true), host("h", Some(1)), None),
            ("/run/redis.sock", None, socket("/run/redis.sock"), None),
            (
                "unix:///run/a%20b@c?db=2",
                Some(false),
                socket("/run/a b@c"),
                Some(2),
            ),
        ] {
            let parsed = parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}"));
            assert!(
                parsed.tls == tls && parsed.target == target && parsed.db == db,
                "{text}"
            );
            assert!(
                parsed.username.is_none() && parsed.password.is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn credentials_in_an_address_are_decoded() {
        for (text, username, password) in [
            ("redis://joe:p%40w@h", Some("joe"), Some("p@w")),
            ("redis://:p@w@h", None, Some("p@w")),
            ("redis://:p%2Cw%20@h", None, Some("p,w ")),
            ("joe:p:w%zz%@h:1", Some("joe"), Some("p:w%zz%")),
            ("redis://joe@h", Some("joe"), None),
            ("redis://@h", None, None),
            ("unix:///s?user=joe&pass=p%26+w", Some("joe"), Some("p& w")),
        ] {
            let parsed = parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}"));
            assert_eq!(parsed.username.as_deref(), username, "{text}");
            assert_eq!(parsed.password.as_deref(), password, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_address_is_refused_in_words_without_a_secret() {
        for (text, words) in [
            ("", "empty"),
            ("redis://", "no host"),
            (":6379", "no host"),
            ("a:1,b:2", "passed by itself"),
            ("redis://a:1,redis://b:2", "passed by itself"),
            (
                "redis://joe:s3c@a:1/0,redis://joe:s3c@b:2/0",
                "passed by itself",
            ),
            ("joe:s3c@a:1,joe:s3c@b:2", "passed by itself"),
            ("/run/a.sock,/run/b.sock", "passed by itself"),
            ("h:6380,password=s3c=,ssl=True", "settings of `Config`"),
            ("h:6380,password=s3c@s3c,ssl=True", "passed by itself"),
            ("h:6380,password=s3c@s3c", "passed by itself"),
            ("redis://:s3,c@h", "%2C"),
            ("redis://h:1 -a s3@c", "%20"),
            ("a:1 b:2", "no port"),
            ("a b", "letters"),
            ("é", "xn--"),
            ("http://h:1", "scheme"),
            ("tcp://h:1", "scheme"),
            ("h:0", "port 0"),
            ("h:70000", "port 70000"),
            ("h:", "no port"),
            ("h:+1", "no port"),
            ("h:s3c", "no port"),
            ("h:6379:s3c", "no port"),
            ("::1", "brackets"),
            ("::1:6379", "brackets"),
            ("redis://fe80::2:6379/1", "brackets"),
            ("[::1", "no IPv6 address"),
            ("[h]:1", "no IPv6 address"),
            ("[::1]6379", "no port"),
            ("0.0.0.0:1", "no address to connect to"),
            ("[::]:1", "no address to connect to"),
            ("h?db=2", "`db` is no parameter"),
            ("redis://h:1/0?password=s3c&ssl=true", "`password`, `ssl`"),
            ("redis://h?protocol=3", "`protocol`"),
            ("redis://h?s3c", "behind '?'"),
            ("redis://h?S3c=", "behind '?'"),
            ("redis://h#s3c", "'#'"),
            ("rediss://h#insecure", "Tls::ca"),
            ("redis://joe:s3/c@h", "%2F"),
            ("redis://joe:s3?c@h", "%3F"),
            ("redis://h/s3c", "database"),
            ("redis://h/-1", "database"),
            ("redis://joe:s3c%ff@h", "UTF-8"),
            ("//joe:s3c@h:1", "redis://host"),
            ("//run/redis.sock", "redis://host"),
            ("unix://run/redis.sock", "begins with '/'"),
            ("unix://joe:s3c@/run/redis.sock", "begins with '/'"),
            ("unix:///s?password=s3c", "`password`"),
            ("unix:///s?db=s3c", "database"),
            ("unix:///s#s3c", "%23"),
            ("/run/redis.sock -a s3c", "%20"),
        ] {
            let reason = refused(text);
            assert!(reason.contains(words), "{text}: {reason}");
            assert!(!reason.contains("s3"), "{text}: {reason}");
        }
    }
}
