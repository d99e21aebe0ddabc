//! One server: connecting to it, greeting it, and exchanging a batch of requests with it.

use std::fmt;
use std::time::Duration;

use redis::{Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::about::About;
use crate::config::{Endpoint, Settings};
use crate::error::{Cause, Error};
use crate::key::Channel;
use crate::script::{self, Answer, Request};
use crate::time;

use self::ear::RedisEar;
use self::session::RedisSession;

mod ear;
mod session;
#[cfg(not(feature = "tls"))]
#[path = "node/plain.rs"]
mod tls;
#[cfg(feature = "tls")]
mod tls;

/// Makes sessions with one node. The one seam at which tests put fakes in the place of servers.
pub(crate) trait Connector: Send + Sync {
    /// Connects, which can block for longer than any time-out where a name has many addresses. A session that
    /// had been there before is killed first, so that nothing of it runs any more (rule S4).
    fn connect(&self, former: Option<&Greeting>) -> Result<(Box<dyn Session>, Greeting), Cause>;

    /// Opens a connection of its own to hear what is published, and keeps it while `serve` runs. Answers why it ended.
    fn listen(&self, serve: &mut dyn FnMut(&mut dyn Ear) -> Result<(), Cause>)
    -> Result<(), Cause>;
}

/// A connection that hears what is published. After an error it is of no use any more.
pub(crate) trait Ear {
    fn subscribe(&mut self, channel: &str) -> Result<(), Cause>;
    fn unsubscribe(&mut self, channel: &str) -> Result<(), Cause>;

    /// Waits for a message, for `wait` at most. Answers its channel.
    fn hear(&mut self, wait: Duration) -> Result<Option<Channel>, Cause>;

    /// Asks for a sign of life.
    fn ping(&mut self) -> Result<(), Cause>;
}

/// An open connection to one node.
pub(crate) trait Session: Send {
    /// Sends the requests as one pipeline and hands out each answer as it is read. Those of readers that travel together
    /// may come before others.
    ///
    /// On an error the requests without an answer are unknown, and the session is of no use any more: replies
    /// may still be on their way.
    fn exchange(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause>;

    /// Asks for a sign of life.
    fn ping(&mut self) -> Result<(), Cause>;
}

/// What a node says of itself and of the session when it is greeted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The server's run id, another one after each restart.
    pub(crate) run_id: String,
    /// The number of this connection within that run.
    pub(crate) client: i64,
    pub(crate) about: About,
}

/// A Redis or Valkey server.
pub(crate) struct Server {
    info: ConnectionInfo,
    connect_timeout: Duration,
    node_timeout: Duration,
}

impl Server {
    /// Reads an address; credentials and database of the settings fill in what it leaves out.
    ///
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn new(endpoint: &Endpoint, settings: &Settings) -> Result<Server, Error> {
        let refuse = |reason: String| {
            Err(Error::InvalidConfig(format!(
                "address {:?}: {reason}",
                endpoint.to_string()
            )))
        };
        let text = endpoint.text();
        if text.is_empty() {
            return refuse("it is empty".into());
        }
        let url = match tls::url(text, settings) {
            Ok(url) => url,
            Err(reason) => return refuse(reason),
        };
        if hides_its_end(&url) {
            return refuse(
                "in a user name or password '/', '?' and '#' are written %2F, %3F and %23".into(),
            );
        }
        let info = match url.as_str().into_connection_info() {
            Ok(info) => info,
            // The parser's detail can repeat what it was given, so only its category is told.
            Err(error) => return refuse(format!("not understood ({})", error.category())),
        };
        if let Some((host, port)) = host_and_port(&info) {
            if host.is_empty() {
                return refuse("no host".into());
            }
            if port == 0 {
                return refuse("port 0".into());
            }
        }
        let info = match tls::secure(info, settings) {
            Ok(info) => info,
            Err(reason) => return refuse(reason),
        };
        let mut redis = info.redis_settings().clone();
        if redis.password().is_none() {
            if let Some(password) = &settings.password {
                redis = redis.set_password(password);
            }
            if let (None, Some(username)) = (redis.username(), &settings.username) {
                redis = redis.set_username(username);
            }
        }
        if let Some(db) = settings.db
            && !names_db(&url)
        {
            redis = redis.set_db(i64::from(db));
        }
        let redis = redis.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Server {
            info: info.set_redis_settings(redis).set_tcp_settings(tcp),
            connect_timeout: settings.connect_timeout,
            node_timeout: settings.node_timeout,
        })
    }

    fn password(&self) -> &str {
        self.info.redis_settings().password().unwrap_or_default()
    }

    /// Where the server is, so that one named twice is found before any I/O. The database is no part of it.
    pub(crate) fn place(&self) -> String {
        match host_and_port(&self.info) {
            Some((host, port)) => format!("{}:{port}", host.to_ascii_lowercase()),
            None => self.info.addr().to_string(),
        }
    }

    fn open(&self) -> Result<Connection, Cause> {
        let timeout = match self.info.addr() {
            // What hangs over TLS has more to tell than that it does: in time for who waits for `connect_timeout`.
            ConnectionAddr::TcpTls { .. } => self.connect_timeout * 7 / 8,
            _ => self.connect_timeout,
        };
        redis::Client::open(self.info.clone())
            .and_then(|client| client.get_connection_with_timeout(timeout))
            .map_err(|error| match self.info.addr() {
                #[cfg(feature = "tls")]
                ConnectionAddr::TcpTls { .. } => tls::cause(&error, self.password()),
                ConnectionAddr::Tcp(..) if script::is_cut(&error) => {
                    Cause::Unreachable(format!("{error}: is it a port for TLS?"))
                }
                _ => script::cause_without(&error, self.password()),
            })
    }
}

fn host_and_port(info: &ConnectionInfo) -> Option<(&str, u16)> {
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

impl Connector for Server {
    fn connect(&self, former: Option<&Greeting>) -> Result<(Box<dyn Session>, Greeting), Cause> {
        let end = time::now() + self.connect_timeout;
        let mut session = RedisSession::new(self.open()?, self.node_timeout, self.password());
        let greeting = session.greet(former, end)?;
        Ok((Box::new(session), greeting))
    }

    fn listen(
        &self,
        serve: &mut dyn FnMut(&mut dyn Ear) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let connection = self.open()?;
        connection
            .set_write_timeout(Some(self.node_timeout))
            .map_err(|error| script::cause(&error))?;
        serve(&mut RedisEar::new(connection, self.node_timeout))
    }
}

#[cfg(all(test, not(loom)))]
mod against_the_model;

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
        Server::new(&settings.endpoints[0], &settings)
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
            let endpoint = Endpoint::from(&address);
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
