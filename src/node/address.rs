//! A server's address, read: how it is connected to, and what its errors mean.

use std::fmt;
use std::time::{Duration, Instant};

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
};

use crate::config::Settings;
use crate::endpoint::Address;
use crate::error::{Cause, Error};
use crate::node::tls;
use crate::node::wire::Wire;
use crate::script;
use crate::time;

/// A Redis or Valkey server, and how we log in there.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) info: ConnectionInfo,
}

impl Server {
    /// Reads a node's address; credentials and database of the settings fill in what it leaves out.
    ///
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(super) fn read(address: &Address, settings: &Settings) -> Result<Server, Error> {
        let (server, url) = Server::parse(address, settings)?;
        let mut redis = server.info.redis_settings().clone();
        if let Some(db) = settings.db
            && !names_db(&url)
        {
            redis = redis.set_db(i64::from(db));
        }
        Ok(server.with(log_in(redis, settings)))
    }

    pub(super) fn parse(address: &Address, settings: &Settings) -> Result<(Server, String), Error> {
        let refuse = |reason: &str| Err(refusal(address, reason));
        let text = address.text();
        if text.is_empty() {
            return refuse("it is empty");
        }
        let url = match tls::url(text, settings) {
            Ok(url) => url,
            Err(reason) => return refuse(&reason),
        };
        if hides_its_end(&url) {
            return refuse(
                "in a user name or password '/', '?' and '#' are written %2F, %3F and %23",
            );
        }
        let info = match url.as_str().into_connection_info() {
            Ok(info) => info,
            // The parser's detail can repeat what it was given, so only its category is told.
            Err(error) => return refuse(&format!("not understood ({})", error.category())),
        };
        if let Some((host, port)) = host_and_port(&info) {
            if host.is_empty() {
                return refuse("no host");
            }
            if port == 0 {
                return refuse("port 0");
            }
        }
        let info = match tls::secure(info, settings) {
            Ok(info) => info,
            Err(reason) => return refuse(&reason),
        };
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp);
        let redis = info.redis_settings().clone();
        Ok((Server { info }.with(redis), url))
    }

    /// The same server, with these credentials and this database.
    pub(super) fn with(self, redis: RedisConnectionInfo) -> Server {
        let redis = redis
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        Server {
            info: self.info.set_redis_settings(redis),
        }
    }

    /// How it is logged in to; empty if it is not.
    pub(super) fn password(&self) -> &str {
        self.info.redis_settings().password().unwrap_or_default()
    }

    /// Where the server is. The database is no part of it.
    pub(super) fn place(&self) -> String {
        match host_and_port(&self.info) {
            Some((host, port)) => place(host, port),
            None => self.info.addr().to_string(),
        }
    }

    /// Connects and logs in. Where a name has many addresses it can take longer than until `end`.
    pub(super) fn open(&self, end: Instant) -> Result<Wire, Cause> {
        let timeout = match self.info.addr() {
            // What hangs over TLS has more to tell than that it does: in time for who waits for `connect_timeout`.
            ConnectionAddr::TcpTls { .. } => left(end) * 7 / 8,
            _ => left(end),
        };
        Wire::open(self, time::now() + timeout).map_err(|error| match self.info.addr() {
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { .. } => tls::cause(&error, self.password()),
            ConnectionAddr::Tcp(..) if script::is_cut(&error) => {
                Cause::Unreachable(format!("{error}: is it a port for TLS?"))
            }
            _ => script::cause_without(&error, self.password()),
        })
    }
}

/// The settings' credentials, where there are none.
pub(super) fn log_in(mut redis: RedisConnectionInfo, settings: &Settings) -> RedisConnectionInfo {
    if redis.password().is_none() {
        if let Some(password) = &settings.password {
            redis = redis.set_password(password);
        }
        if let (None, Some(username)) = (redis.username(), &settings.username) {
            redis = redis.set_username(username);
        }
    }
    redis
}

/// A time-out that ends then; never zero, which would be none at all.
pub(super) fn left(end: Instant) -> Duration {
    let left = end.saturating_duration_since(time::now());
    left.max(Duration::from_millis(1))
}

/// How a place is called.
pub(super) fn place(host: &str, port: u16) -> String {
    format!("{}:{port}", host.to_ascii_lowercase())
}

pub(super) fn refusal(address: &Address, reason: &str) -> Error {
    Error::InvalidConfig(format!("address {:?}: {reason}", address.to_string()))
}

pub(super) fn host_and_port(info: &ConnectionInfo) -> Option<(&str, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

/// Whether credentials have something in them that ends them for the parser: the beginning of a password would be taken
/// for a port, which is no secret.
fn hides_its_end(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else {
        return false;
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    !scheme.ends_with("unix") && rest[end..].contains('@')
}

/// Whether an address names a database of its own, be it 0.
fn names_db(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else {
        return false;
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if scheme.ends_with("unix") {
        return query.split('&').any(|pair| pair.starts_with("db="));
    }
    path.rsplit_once('@')
        .map_or(path, |(_, host)| host)
        .split_once('/')
        .is_some_and(|(_, db)| !db.is_empty())
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.place())
    }
}

/// The server of settings that have no other.
#[cfg(all(test, not(loom)))]
pub(super) fn only(settings: &Settings) -> Result<Server, Error> {
    match settings.endpoints[0].kind() {
        crate::endpoint::Kind::Server(address) => Server::read(address, settings),
        #[cfg(any(feature = "sentinel", feature = "cluster"))]
        _ => panic!("not a server's address"),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    fn server(address: &str) -> Result<Server, Error> {
        let settings = Config::new([address])
            .username("joe")
            .password("s3cret")
            .db(7)
            .check()?;
        only(&settings)
    }

    #[test]
    fn addresses_in_every_form() {
        for (address, place) in [
            ("10.0.0.1:6380", "10.0.0.1:6380"),
            ("Redis-1", "redis-1:6379"),
            ("[::1]:6390", "::1:6390"),
            ("redis://h/3", "h:6379"),
            ("redis://u:p@h:1", "h:1"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
        ] {
            assert_eq!(server(address).unwrap().place(), place, "{address}");
        }
    }

    #[test]
    fn an_address_keeps_what_it_names_itself() {
        for (address, username, password, db) in [
            ("h:1", Some("joe"), "s3cret", 7),
            ("redis://h/", Some("joe"), "s3cret", 7),
            ("redis://h/0", Some("joe"), "s3cret", 0),
            ("redis://ann:pw@h/3", Some("ann"), "pw", 3),
            ("redis://:pw@h/3", None, "pw", 3),
            ("unix:///s?db=2", Some("joe"), "s3cret", 2),
        ] {
            let server = server(address).unwrap();
            let redis = server.info.redis_settings();
            assert_eq!(redis.username(), username, "{address}");
            assert_eq!(redis.password(), Some(password), "{address}");
            assert_eq!(redis.db(), db, "{address}");
        }
    }

    #[test]
    fn bad_addresses_are_named_without_their_secrets() {
        for address in [
            "",
            "http://joe:s3cret@h:1",
            "redis://joe:s3cret@h:99999",
            "redis://joe:s3cret@h/notadb",
            "h:0",
            "0.0.0.0:6379",
            "redis://",
            "a b",
        ] {
            let error = server(address).unwrap_err().to_string();
            assert!(error.contains("address"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    /// What may stand in an address, and much that may not.
    fn pieces() -> impl Strategy<Value = String> {
        let words = [
            "redis",
            "unix",
            "://",
            "//",
            ":",
            "@",
            "/",
            "?",
            "#",
            "[",
            "]",
            "::1",
            "%40",
            "%2F",
            "%zz",
            "%ff",
            "%00",
            "joe",
            "h",
            "6379",
            "99999",
            "-1",
            "db=",
            "user=",
            "pass=",
            "protocol=3",
            "&",
            "+",
            "\\",
            "\t",
            "\n",
            "\0",
            " ",
            "é",
            "＠",
            "🔒",
            "\u{202e}",
            "'",
            "\"",
            "0.0.0.0",
            "localhost",
            "..",
        ];
        let word = proptest::sample::select(words.to_vec()).prop_map(String::from);
        let piece = prop_oneof![9 => word, 1 => any::<char>().prop_map(String::from)];
        proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
    }

    /// As in an address, where everything but letters and digits may be written so.
    fn encoded(text: &str) -> String {
        text.bytes()
            .map(|byte| match byte.is_ascii_alphanumeric() {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in pieces()) {
            match server(&text) {
                Ok(server) => {
                    let place = server.place();
                    prop_assert_eq!(format!("{server:?}"), format!("Server({place})"));
                    let is_tcp = matches!(server.info.addr(), ConnectionAddr::Tcp(..));
                    prop_assert!(!is_tcp || !place.contains(['@', '/', '?']), "{}", place);
                }
                Err(error) => prop_assert!(error.to_string().contains("address \""), "{}", error),
            }
        }

        #[test]
        fn no_password_is_ever_shown(odd in pieces(), form in 0..6_usize, is_encoded in any::<bool>()) {
            let password = format!("31337{odd}s3cret");
            let written = if is_encoded { encoded(&password) } else { password.clone() };
            let address = match form {
                0 => format!("redis://joe:{written}@h:1/2"),
                1 => format!("valkey://:{written}@h"),
                2 => format!("joe:{written}@h:1"),
                3 => format!(":{written}@[::1]"),
                4 => format!("unix:///run/s?user=joe&pass={written}"),
                _ => format!("http://joe:{written}@h:99999/x"),
            };
            let endpoint = crate::endpoint::Endpoint::from(&address);
            let config = Config::new([&address]).password(&password);
            let mut shown = format!("{endpoint} {endpoint:?} {config:?}");
            let server = server(&address);
            match &server {
                Ok(server) => shown += &format!("{} {server:?}", server.place()),
                Err(error) => shown += &format!("{error} {error:?}"),
            }
            prop_assert!(!shown.contains("31337") && !shown.contains("s3cret"), "{}", shown);
            if is_encoded && form < 5 {
                let taken = server.unwrap();
                prop_assert_eq!(taken.info.redis_settings().password(), Some(&*password));
            }
        }
    }
}
