//! Parses the text of a server's address, and shows it without secrets.
//!
//! A parser of its own, because a URL parser drops unknown parts silently and repeats invalid ones,
//! secrets included, in its errors.

use std::net::Ipv6Addr;

/// The longest host name in bytes (RFC 1035).
const MAX_HOST_LEN: usize = 255;

/// The parts of an address. It has no `Debug`, which would show the password.
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
    /// A name or an IP address; IPv6 without its brackets.
    Host { host: String, port: Option<u16> },
    /// The path of a Unix socket.
    Socket(String),
}

/// Returns the addresses in a text that separates them by commas, without empty ones.
pub(crate) fn split(addresses: &str) -> impl Iterator<Item = &str> {
    let parts = addresses.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty())
}

/// Parses an address.
///
/// # Errors
/// Returns a reason that repeats nothing of the address that may be a secret.
pub(crate) fn parse(text: &str) -> Result<ParsedAddress, String> {
    if text.is_empty() {
        return Err("empty address".to_owned());
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
        Some(_) => Err("unknown scheme: use redis, rediss, valkey, valkeys or unix".to_owned()),
    }
}

/// Returns the address without anything that may be a secret: scheme, host, port and database, or
/// the path of the socket. Of an invalid address it returns the scheme, and the host up to the
/// first character that a host cannot have.
pub(crate) fn without_secrets(text: &str) -> String {
    let (scheme, rest) = split_scheme(text);
    let is_bare_path = is_path(text) && !text.starts_with("//");
    let is_socket = scheme.map_or(is_bare_path, |scheme| scheme.ends_with("unix"));
    let shown = if is_socket {
        socket_without_secrets(rest)
    } else {
        host_without_secrets(rest)
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

/// Returns whether this is a scheme; else the `://` after it is part of a password, for example.
fn is_scheme(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Returns whether an address without a scheme is the path of a socket.
fn is_path(text: &str) -> bool {
    text.starts_with('/')
}

fn parse_host(rest: &str, tls: Option<bool>) -> Result<ParsedAddress, String> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if rest.contains(',') {
        return Err("a ',' separates addresses: pass each one by itself, as in \
             `Config::new(text.split(','))`; options are settings of `Config`; in a user name or \
             password write %2C"
            .to_owned());
    }
    if tail.contains('@') {
        return Err(
            "in a user name or password write %2F, %3F and %23 for '/', '?' and '#'".to_owned(),
        );
    }
    let (login, host_port) = match authority.rsplit_once('@') {
        Some((login, host_port)) => (Some(login), host_port),
        None => (None, authority),
    };
    if login.is_some_and(|login| login.contains(is_space)) {
        return Err("in a user name or password write %20 for white space".to_owned());
    }
    let (host, port) = parse_host_port(host_port)?;
    let (path, query, fragment) = split_tail(tail);
    if let Some(fragment) = fragment {
        return Err(match fragment {
            "insecure" => "`#insecure` is not supported: set the authority with `Tls::ca`",
            _ => "a '#' with text after it is not part of an address",
        }
        .to_owned());
    }
    if let Some(query) = query {
        return Err(refused_query(
            query,
            "of a TCP address: write the database after '/', user and password before '@', and set all else with `Config`",
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
            return Err("no IPv6 address between '[' and ']'".to_owned());
        };
        if ip.is_unspecified() {
            return Err(NO_TARGET.to_owned());
        }
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return Err("no port after ']'".to_owned()),
        };
        return Ok((ip.to_string(), port));
    }
    if is_bare_ipv6(text) {
        return Err("an IPv6 address needs brackets, as in [::1]:6379".to_owned());
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
            "a host has only ASCII letters, digits, '-', '.' and '_' (write other names in their xn-- form)"
                .to_owned(),
        );
    }
    if host == "0.0.0.0" {
        return Err(NO_TARGET.to_owned());
    }
    Ok((host.to_owned(), port.map(parse_port).transpose()?))
}

const NO_TARGET: &str = "a server listens there; it is no address to connect to";

/// Returns whether the text looks like an IPv6 address without brackets: a host has at most one
/// `:`, before its port.
fn is_bare_ipv6(text: &str) -> bool {
    let is_ip_byte = |b: u8| b.is_ascii_hexdigit() || b":.".contains(&b);
    text.matches(':').count() > 1 && text.bytes().all(is_ip_byte)
}

/// Parses a port. The error repeats only a number, because a text in its place may be a password.
fn parse_port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) => Err("port 0".to_owned()),
        Ok(port) if is_number => Ok(port),
        _ if is_number && text.len() == 5 => Err(format!("port {text} is above 65535")),
        _ => Err("no port after the host's ':'".to_owned()),
    }
}

fn parse_db(text: &str) -> Result<u32, String> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    let db = text.parse().ok().filter(|_| is_number);
    db.ok_or_else(|| "the database is not a number".to_owned())
}

fn parse_socket(rest: &str, tls: Option<bool>) -> Result<ParsedAddress, String> {
    if cfg!(not(unix)) {
        return Err("there are no Unix sockets on this platform".to_owned());
    }
    let (path, query, fragment) = split_tail(rest);
    if fragment.is_some() {
        return Err("in a path write %23 for '#'".to_owned());
    }
    if !is_path(path) {
        return Err(
            "the path of a socket begins with '/', as in unix:///run/redis.sock".to_owned(),
        );
    }
    if path.contains(',') {
        return Err(
            "a ',' separates addresses: pass each one by itself; in a path write %2C".to_owned(),
        );
    }
    if path.contains(is_space) {
        return Err("in a path write %20 for white space".to_owned());
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
                return Err(refused_query(pair, "of a socket: use db, user and pass"));
            }
        }
    }
    Ok(parsed)
}

/// Splits the text after a host, or a path, into path, query and fragment.
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

/// Returns the reason for refused parameters. It repeats their names, but no text that may be part
/// of a secret.
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
        names if names.is_empty() => format!("the text after '?' is no parameter {why}"),
        names => format!("{} is no parameter {why}", names.join(", ")),
    }
}

/// Decodes characters that are written as `%` and two hexadecimal digits.
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
    String::from_utf8(decoded).map_err(|_| "the bytes written with '%' are not UTF-8".to_owned())
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

fn host_without_secrets(rest: &str) -> String {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (login, host_port) = match authority.rsplit_once('@') {
        Some((login, host_port)) => (Some(login), host_port),
        None => (None, authority),
    };
    // The end of a malformed login is unknown, because an '@' may be part of it.
    let is_odd = |login: &str| login.contains(|c| c == ',' || is_space(c));
    if tail.contains('@') || login.is_some_and(is_odd) {
        return HIDDEN.to_owned();
    }
    if host_port.parse::<Ipv6Addr>().is_ok() {
        return host_port.to_owned(); // IPv6 without its brackets
    }
    if parse_host_port(host_port).is_ok() {
        return match parse_host(rest, None) {
            Ok(ParsedAddress { db: Some(db), .. }) => format!("{host_port}/{db}"),
            _ => host_port.to_owned(),
        };
    }
    // The text after the host is hidden, because a password may begin like a port.
    let end = host_port.bytes().position(|byte| !is_host_byte(byte));
    match &host_port[..end.unwrap_or(host_port.len())] {
        "" if rest.is_empty() => String::new(),
        "" => HIDDEN.to_owned(),
        host => host.chars().take(MAX_HOST_LEN).collect(),
    }
}

fn socket_without_secrets(rest: &str) -> String {
    let is_end = |c: char| matches!(c, '?' | '#' | ',') || is_space(c);
    let path = &rest[..rest.find(is_end).unwrap_or(rest.len())];
    // A login before the path is invalid, but may be written there.
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

/// Replaces a text that may be a secret.
const HIDDEN: &str = "..";

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text)
            .err()
            .unwrap_or_else(|| panic!("{text} is parsed"))
    }

    #[test]
    fn address_in_each_form_is_parsed() {
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
    fn invalid_address_is_refused_without_repeating_a_secret() {
        for (text, words) in [
            ("", "empty"),
            ("redis://", "no host"),
            (":6379", "no host"),
            ("a:1,b:2", "each one by itself"),
            ("redis://a:1,redis://b:2", "each one by itself"),
            (
                "redis://joe:s3c@a:1/0,redis://joe:s3c@b:2/0",
                "each one by itself",
            ),
            ("joe:s3c@a:1,joe:s3c@b:2", "each one by itself"),
            ("/run/a.sock,/run/b.sock", "each one by itself"),
            ("h:6380,password=s3c=,ssl=True", "settings of `Config`"),
            ("h:6380,password=s3c@s3c,ssl=True", "each one by itself"),
            ("h:6380,password=s3c@s3c", "each one by itself"),
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
            ("redis://h?s3c", "after '?'"),
            ("redis://h?S3c=", "after '?'"),
            ("redis://h#s3c", "'#'"),
            ("rediss://h#insecure", "Tls::ca"),
            ("redis://joe:s3/c@h", "%2F"),
            ("redis://joe:s3?c@h", "%3F"),
            ("redis://h/s3c", "database"),
            ("redis://h/-1", "database"),
            ("redis://joe:s3c%ff@h", "UTF-8"),
            ("//joe:s3c@h:1", "redis://host"),
        ] {
            check_refusal(text, words);
        }
    }

    #[test]
    fn invalid_socket_path_is_refused_without_repeating_a_secret() {
        for (text, words) in [
            ("//run/redis.sock", "redis://host"),
            ("unix://run/redis.sock", "begins with '/'"),
            ("unix://joe:s3c@/run/redis.sock", "begins with '/'"),
            ("unix:///s?password=s3c", "`password`"),
            ("unix:///s?db=s3c", "database"),
            ("unix:///s#s3c", "%23"),
            ("/run/redis.sock -a s3c", "%20"),
        ] {
            check_refusal(text, words);
        }
    }

    fn check_refusal(text: &str, words: &str) {
        let reason = refused(text);
        assert!(reason.contains(words), "{text}: {reason}");
        assert!(!reason.contains("s3"), "{text}: {reason}");
    }
}
