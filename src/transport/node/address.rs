//! A server's address with its login, parsed for `redis`, and the failure of a connect.

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
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::server_error;
use crate::transport::node::tls;

/// The default port of a server.
const PORT: u16 = 6379;

/// The address of a Redis or Valkey server, and its login.
#[derive(Clone)]
pub(crate) struct ServerAddress {
    pub(crate) info: ConnectionInfo,
    /// The provider that fills in missing credentials at each connect, and the node's name.
    credentials: Option<(CredentialsProvider, Arc<str>)>,
}

impl ServerAddress {
    /// Parses a node's address. The settings supply the credentials and database that it omits.
    ///
    /// # Errors
    /// - `InvalidConfig` with the address, without its credentials.
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

    /// Parses an address, with its own credentials and database only.
    ///
    /// # Errors
    /// - `InvalidConfig` with the address, without its credentials.
    pub(super) fn parse(
        address: &Address,
        settings: &Settings,
    ) -> Result<(ServerAddress, ParsedAddress), Error> {
        let refuse = |reason: String| address_error(address, &reason);
        let parsed = address.parse().map_err(refuse)?;
        let over_tls = tls::is_configured(parsed.tls, settings).map_err(refuse)?;
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
        // The conversion of a `ConnectionAddr` parses nothing and never fails.
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

    /// Returns the server with these credentials and this database.
    pub(super) fn with_credentials(mut self, redis: RedisConnectionInfo) -> ServerAddress {
        let redis = redis
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        self.info = self.info.set_redis_settings(redis);
        self
    }

    /// Returns the server with the credentials of the settings, if its address has none.
    pub(super) fn with_login(mut self, settings: &Settings, node: &str) -> ServerAddress {
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

    /// Returns the server with present credentials, from the user's provider if there is one.
    ///
    /// # Errors
    /// - `Unreachable`: the provider panicked.
    pub(super) fn with_current_credentials(&self) -> Result<ServerAddress, NodeFailure> {
        let Some((provider, node)) = &self.credentials else {
            return Ok(self.clone());
        };
        let returned = catch_unwind(AssertUnwindSafe(|| provider(node)));
        let Ok(Credentials { username, password }) = returned else {
            let text = "the function of `Config::credentials` panicked";
            return Err(NodeFailure::Unreachable(text.to_owned()));
        };
        let redis = self.info.redis_settings().clone();
        let redis = fill_credentials(redis, username.as_deref(), Some(&password));
        Ok(self.clone().with_credentials(redis))
    }

    /// Returns the password of the login; empty if there is none.
    pub(crate) fn password(&self) -> &str {
        self.info.redis_settings().password().unwrap_or_default()
    }

    /// Returns host and port, or the socket path, without the database.
    pub(crate) fn host_port(&self) -> String {
        match host_and_port(&self.info) {
            Some((host, port)) => format_host_port(host, port),
            None => self.info.addr().to_string(),
        }
    }

    /// Converts the error of a connect to the node's failure, without the password in its text.
    pub(super) fn connect_failure(&self, error: &RedisError) -> NodeFailure {
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

/// Fills in credentials that are missing.
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

/// Formats host and port, with an IPv6 address in brackets.
fn format_host_port(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Returns `InvalidConfig` for an address, without its credentials.
pub(super) fn address_error(address: &Address, reason: &str) -> Error {
    Error::InvalidConfig(format!("address {:?}: {reason}", address.to_string()))
}

/// Returns host and port of a network address; `None` for a socket path.
pub(super) fn host_and_port(info: &ConnectionInfo) -> Option<(&str, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerAddress({})", self.host_port())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::builder::Config;
    use crate::tests::fixtures::only;

    fn server(address: &str) -> Result<ServerAddress, Error> {
        let settings = Config::new([address])
            .username("joe")
            .password("s3cret")
            .db(7)
            .validate()?;
        only(&settings)
    }

    #[test]
    fn every_form_of_an_address_is_parsed() {
        for (address, host_port) in [
            ("10.0.0.1:6380", "10.0.0.1:6380"),
            ("Redis-1", "redis-1:6379"),
            ("[::1]:6390", "[::1]:6390"),
            ("redis://h/3", "h:6379"),
            ("redis://u:p@h:1", "h:1"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
        ] {
            assert_eq!(server(address).unwrap().host_port(), host_port, "{address}");
        }
    }

    #[test]
    fn address_keeps_its_own_credentials_and_database() {
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
    fn invalid_address_is_named_without_its_password() {
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

    /// Generates text from valid and invalid parts of an address.
    fn pieces() -> impl Strategy<Value = String> {
        let parts = [
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
        let part = proptest::sample::select(parts.to_vec()).prop_map(String::from);
        let piece = prop_oneof![9 => part, 1 => any::<char>().prop_map(String::from)];
        proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
    }

    /// Percent-encodes everything but letters and digits.
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
                    let host_port = server.host_port();
                    prop_assert_eq!(format!("{server:?}"), format!("ServerAddress({host_port})"));
                    let is_tcp = matches!(server.info.addr(), ConnectionAddr::Tcp(..));
                    prop_assert!(!is_tcp || !host_port.contains(['@', '/', '?']), "{}", host_port);
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
                let server = server.unwrap();
                prop_assert_eq!(server.info.redis_settings().password(), Some(&*password));
            }
        }
    }
}
