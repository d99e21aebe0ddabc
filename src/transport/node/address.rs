//! A server's address, read: how it is connected to, and what its errors mean.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError,
};

use crate::config::address::{ParsedAddress, Target};
use crate::config::credentials::{Credentials, CredentialsProvider};
use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::protocol::server_error;
use crate::transport::node::tls;

/// Where a server listens, if its address does not say.
const PORT: u16 = 6379;

/// A Redis or Valkey server, and how we log in there.
#[derive(Clone)]
pub(crate) struct ServerAddress {
    pub(crate) info: ConnectionInfo,
    /// Returns what is missing in `info` at each connect, for the node of this name.
    credentials: Option<(CredentialsProvider, Arc<str>)>,
}

impl ServerAddress {
    /// Reads a node's address; credentials and database of the settings fill in what it leaves out.
    ///
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn from_address(
        address: &Address,
        settings: &Settings,
    ) -> Result<ServerAddress, Error> {
        let (server, parsed) = ServerAddress::parse(address, settings)?;
        let mut redis = server.info.redis_settings().clone();
        if let (None, Some(db)) = (parsed.db, settings.db) {
            redis = redis.set_db(i64::from(db));
        }
        let name = server.host_port();
        Ok(server.with_credentials(redis).with_login(settings, &name))
    }

    pub(crate) fn parse(
        address: &Address,
        settings: &Settings,
    ) -> Result<(ServerAddress, ParsedAddress), Error> {
        let refuse = |reason: String| address_error(address, &reason);
        let parsed = address.parse().map_err(refuse)?;
        let over_tls = tls::is_asked_for(parsed.tls, settings).map_err(refuse)?;
        let addr = match parsed.target.clone() {
            Target::Socket(path) => ConnectionAddr::Unix(path.into()),
            Target::Host { host, port } => {
                let port = port.unwrap_or(PORT);
                match over_tls {
                    false => ConnectionAddr::Tcp(host, port),
                    true => ConnectionAddr::TcpTls {
                        host,
                        port,
                        insecure: false,
                        tls_params: None,
                    },
                }
            }
        };
        // It reads nothing here, and can refuse nothing.
        let info = addr
            .into_connection_info()
            .map_err(|error| refuse(error.category().to_owned()))?;
        let info = tls::apply_tls(info, settings).map_err(refuse)?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp);
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &parsed.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &parsed.password {
            redis = redis.set_password(password);
        }
        let db = parsed.db.unwrap_or_default();
        let server = ServerAddress {
            info,
            credentials: None,
        };
        Ok((server.with_credentials(redis.set_db(i64::from(db))), parsed))
    }

    /// The same server, with these credentials and this database.
    pub(crate) fn with_credentials(mut self, redis: RedisConnectionInfo) -> ServerAddress {
        let redis = redis
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        self.info = self.info.set_redis_settings(redis);
        self
    }

    /// The same with the credentials of the settings for the node of this name, where it has none.
    pub(crate) fn with_login(mut self, settings: &Settings, node: &str) -> ServerAddress {
        let redis = self.info.redis_settings().clone();
        if let (None, Some(provider)) = (redis.password(), &settings.credentials) {
            self.credentials = Some((Arc::clone(provider), node.into()));
        }
        let (username, password) = (&settings.username, &settings.password);
        self.with_credentials(fill_credentials(
            redis,
            username.as_deref(),
            password.as_deref(),
        ))
    }

    /// The same with the credentials of this moment.
    pub(crate) fn with_current_credentials(&self) -> Result<ServerAddress, NodeFailure> {
        let Some((provider, node)) = &self.credentials else {
            return Ok(self.clone());
        };
        let returned = catch_unwind(AssertUnwindSafe(|| provider(node)));
        let Ok(Credentials { username, password }) = returned else {
            let words = "the function of `Config::credentials` panicked";
            return Err(NodeFailure::Unreachable(words.to_owned()));
        };
        let redis = self.info.redis_settings().clone();
        let redis = fill_credentials(redis, username.as_deref(), Some(&password));
        Ok(self.clone().with_credentials(redis))
    }

    /// How it is logged in to; empty if it is not.
    pub(crate) fn password(&self) -> &str {
        self.info.redis_settings().password().unwrap_or_default()
    }

    /// Where the server is. The database is no part of it.
    pub(crate) fn host_port(&self) -> String {
        match host_and_port(&self.info) {
            Some((host, port)) => place(host, port),
            None => self.info.addr().to_string(),
        }
    }

    pub(crate) fn connect_failure(&self, error: &RedisError) -> NodeFailure {
        match self.info.addr() {
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { .. } => tls::connect_failure(error, self.password()),
            ConnectionAddr::Tcp(..) if server_error::is_peer_close(error) => {
                NodeFailure::Unreachable(format!("{error}: is it a port for TLS? (rediss://)"))
            }
            _ => server_error::failure_redacted(error, self.password()),
        }
    }
}

/// Adds these credentials, where there are none.
fn fill_credentials(
    mut redis: RedisConnectionInfo,
    username: Option<&str>,
    password: Option<&str>,
) -> RedisConnectionInfo {
    if redis.password().is_none() {
        if let Some(password) = password {
            redis = redis.set_password(password);
        }
        if let (None, Some(username)) = (redis.username(), username) {
            redis = redis.set_username(username);
        }
    }
    redis
}

/// How a place is called; an IPv6 address is in brackets, as where it is read.
pub(crate) fn place(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

pub(crate) fn address_error(address: &Address, reason: &str) -> Error {
    Error::InvalidConfig(format!("address {:?}: {reason}", address.to_string()))
}

pub(crate) fn host_and_port(info: &ConnectionInfo) -> Option<(&str, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.host_port())
    }
}

/// The server of settings that have no other.
#[cfg(all(test, not(loom)))]
pub(crate) fn only(settings: &Settings) -> Result<ServerAddress, Error> {
    match settings.endpoints[0].kind() {
        crate::config::endpoint::EndpointKind::Server(address) => {
            ServerAddress::from_address(address, settings)
        }
        #[cfg(any(feature = "sentinel", feature = "cluster"))]
        _ => panic!("not a server's address"),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::builder::Config;

    fn server(address: &str) -> Result<ServerAddress, Error> {
        let settings = Config::new([address])
            .username("joe")
            .password("s3cret")
            .db(7)
            .validate()?;
        only(&settings)
    }

    #[test]
    fn addresses_in_every_form() {
        for (address, place) in [
            ("10.0.0.1:6380", "10.0.0.1:6380"),
            ("Redis-1", "redis-1:6379"),
            ("[::1]:6390", "[::1]:6390"),
            ("redis://h/3", "h:6379"),
            ("redis://u:p@h:1", "h:1"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
        ] {
            assert_eq!(server(address).unwrap().host_port(), place, "{address}");
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
                    let place = server.host_port();
                    prop_assert_eq!(format!("{server:?}"), format!("Server({place})"));
                    let is_tcp = matches!(server.info.addr(), ConnectionAddr::Tcp(..));
                    prop_assert!(!is_tcp || !place.contains(['@', '/', '?']), "{}", place);
                }
                Err(error) => prop_assert!(error.to_string().contains("address \""), "{}", error),
            }
        }

        #[test]
        fn no_password_is_ever_shown(odd in pieces(), form in 0..14_usize, is_encoded in any::<bool>()) {
            let password = format!("31337{odd}s3cret");
            let written = if is_encoded { encoded(&password) } else { password.clone() };
            // `h:1:pw` with an '@' in the password is user, password and host.
            let written = match form {
                7..=9 => written.replace('@', "-"),
                _ => written,
            };
            let address = match form {
                0 => format!("redis://joe:{written}@h:1/2"),
                1 => format!("valkey://:{written}@h"),
                2 => format!("joe:{written}@h:1"),
                3 => format!(":{written}@[::1]"),
                4 => format!("unix:///run/s?user=joe&pass={written}"),
                5 => format!("http://joe:{written}@h:99999/x"),
                6 => format!("h:6380,password={written},ssl=True"),
                7 => format!("h:6379:{written}"),
                8 => format!("redis://h:x{written}"),
                9 => format!("redis://:{written}"),
                10 => format!("redis://h:6379 -a {written}"),
                11 => format!("redis://h/0?password={written}"),
                12 => format!("rediss://h/{written}"),
                _ => format!("/run/s?pass={written}"),
            };
            let endpoint = crate::config::endpoint::Endpoint::from(&address);
            let config = Config::new([&address]).password(&password);
            let mut shown = format!("{endpoint} {endpoint:?} {config:?}");
            let server = server(&address);
            match &server {
                Ok(server) => shown += &format!("{} {server:?}", server.host_port()),
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
