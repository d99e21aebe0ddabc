//! Finds the master that sentinels name: asks the sentinels in order, and confirms the role with
//! the master itself.
//!
//! Source: *Guidelines for Redis clients with support for Sentinel* (Redis documentation). Each
//! step has a deadline; the sentinel client of `redis` connects to a sentinel without a timeout.

use std::time::Instant;

use log::debug;
use redis::{RedisConnectionInfo, Value};

use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::time::clock;
use crate::transport::node::address::ServerAddress;
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::transport::node::discovery;
use crate::transport::node::stream::Stream;

/// The default port of a sentinel.
const PORT: u16 = 26379;

/// The name of a master, and the sentinels that know its address.
pub(crate) struct SentinelResolver {
    master: String,
    /// The sentinels, each with a template for the address of the master that it names.
    sentinels: Vec<(ServerAddress, ServerAddress)>,
    name: String,
}

impl SentinelResolver {
    /// Parses the sentinels' addresses.
    ///
    /// # Errors
    /// - `InvalidConfig` with the address, without its credentials.
    pub(crate) fn new(
        master: &str,
        sentinels: &[Address],
        settings: &Settings,
    ) -> Result<SentinelResolver, Error> {
        let parse = |address| ServerAddress::from_discovery_address(address, settings, PORT);
        let sentinels = sentinels.iter().map(parse);
        let sentinels = sentinels.collect::<Result<Vec<ServerAddress>, Error>>()?;
        let first = sentinels.first().map(ServerAddress::host_port);
        let name = format!("sentinel:{master}@{}", first.unwrap_or_default());
        let with_master = |sentinel: ServerAddress| {
            let template = sentinel.as_master_template(settings, &name);
            (sentinel, template)
        };
        Ok(SentinelResolver {
            master: master.to_owned(),
            sentinels: sentinels.into_iter().map(with_master).collect(),
            name,
        })
    }

    /// Returns the node's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Connects to the master; returns the connection and the master's address. Each sentinel gets
    /// an equal share of the time left until `end`: half for its reply, half for the master that it
    /// names.
    ///
    /// # Errors
    /// - The failures of all sentinels, merged.
    pub(crate) fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        let mut failures = Vec::new();
        for (index, (sentinel, template)) in self.sentinels.iter().enumerate() {
            let others = (self.sentinels.len() - index) as u32;
            let now = clock::now();
            let share = end.saturating_duration_since(now) / others;
            let address = self.query_master(sentinel, now + share / 2);
            let server = address.map(|(host, port)| template.with_host_port(&host, port));
            match server.and_then(|server| connect_master(server, now + share)) {
                Ok((connection, server)) => {
                    debug!("{}: master: {}", self.name(), server.host_port());
                    return Ok((connection, server));
                }
                Err(failure) => {
                    failures.push(discovery::prefix_failure(&sentinel.host_port(), failure))
                }
            }
        }
        Err(merge_failures(failures))
    }

    /// Asks a sentinel for the address of the master.
    fn query_master(
        &self,
        sentinel: &ServerAddress,
        end: Instant,
    ) -> Result<(String, u16), NodeFailure> {
        let (mut connection, sentinel) = sentinel.open(end)?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let address: Option<(String, u16)> = sentinel.query(&mut connection, &command, end)?;
        match address {
            Some((host, _)) if !discovery::is_host(&host) => Err(NodeFailure::ServerError(
                "the reported master address is no host".into(),
            )),
            Some(address) => Ok(address),
            None => Err(NodeFailure::ServerError(format!(
                "unknown master {:?}",
                self.master
            ))),
        }
    }
}

impl ServerAddress {
    /// Returns a copy with the credentials and the database of the settings, which are the
    /// master's.
    fn as_master_template(&self, settings: &Settings, node: &str) -> ServerAddress {
        let db = settings.db.map_or(0, i64::from);
        let redis = RedisConnectionInfo::default().set_db(db);
        self.clone()
            .with_credentials(redis)
            .with_login(settings, node)
    }
}

/// Connects to a server and confirms that it is a master: during a failover the sentinel may name
/// the former one.
fn connect_master(
    server: ServerAddress,
    end: Instant,
) -> Result<(Stream, ServerAddress), NodeFailure> {
    let name = server.host_port();
    let prefixed = |failure| discovery::prefix_failure(&name, failure);
    let (mut connection, server) = server.open(end).map_err(prefixed)?;
    let role: Vec<Value> = server
        .query(&mut connection, &redis::cmd("ROLE"), end)
        .map_err(prefixed)?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok((connection, server)),
        _ => Err(prefixed(NodeFailure::ServerError(
            "its ROLE is not master".into(),
        ))),
    }
}

/// Merges the failures of all sentinels. `AccessDenied` prevails, because waiting does not help.
fn merge_failures(mut failures: Vec<NodeFailure>) -> NodeFailure {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let is_denied = failures
        .iter()
        .any(|failure| matches!(failure, NodeFailure::AccessDenied(_)));
    let texts: Vec<String> = failures.into_iter().map(failure_text).collect();
    let text = texts.join("; ");
    match is_denied {
        true => NodeFailure::AccessDenied(text),
        false => NodeFailure::Unreachable(text),
    }
}

/// Returns the text of a failure without its kind.
fn failure_text(failure: NodeFailure) -> String {
    match failure {
        NodeFailure::AccessDenied(text)
        | NodeFailure::ServerError(text)
        | NodeFailure::Unreachable(text) => text,
        other => other.to_string(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::builder::Config;
    use crate::config::endpoint::{Endpoint, EndpointKind};

    fn resolver(
        sentinels: &[&str],
        config: impl FnOnce(Config) -> Config,
    ) -> Result<SentinelResolver, Error> {
        let endpoint = Endpoint::sentinel("m", sentinels);
        let settings = config(Config::new([endpoint])).validate()?;
        match settings.endpoints[0].kind() {
            EndpointKind::Sentinel { master, sentinels } => {
                SentinelResolver::new(master, sentinels, &settings)
            }
            _ => panic!("not a sentinel endpoint"),
        }
    }

    #[test]
    fn sentinel_uses_its_own_credentials_and_master_those_of_the_settings() {
        let resolver = resolver(&["H", "redis://joe:theirs@h:1"], |config| {
            config.username("ann").password("ours").db(3)
        })
        .unwrap();
        assert_eq!(resolver.name(), "sentinel:m@h:26379");
        let logins = resolver.sentinels.iter().map(|(sentinel, template)| {
            let settings = |server: &ServerAddress| {
                let redis = server.info.redis_settings();
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                (text(redis.username()), text(redis.password()), redis.db())
            };
            (sentinel.host_port(), settings(sentinel), settings(template))
        });
        let login = |user: &str, password: &str, db| (user.to_owned(), password.to_owned(), db);
        let master = login("ann", "ours", 3);
        let expected = [
            ("h:26379".to_owned(), login("", "", 0), master.clone()),
            ("h:1".to_owned(), login("joe", "theirs", 0), master),
        ];
        assert_eq!(logins.collect::<Vec<_>>(), expected);
    }

    #[cfg(feature = "tls")]
    #[test]
    fn master_is_connected_over_tls_if_its_sentinel_is() {
        use redis::ConnectionAddr;
        let resolver = resolver(&["h:1", "rediss://h:2"], |config| config).unwrap();
        let is_over_tls = resolver.sentinels.iter().map(|(_, template)| {
            let master = template.with_host_port("10.0.0.1", 7);
            assert_eq!(master.host_port(), "10.0.0.1:7");
            matches!(master.info.addr(), ConnectionAddr::TcpTls { .. })
        });
        assert_eq!(is_over_tls.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn failures_of_sentinels_are_merged_and_denial_prevails() {
        let lost = || NodeFailure::Unreachable("a: lost".into());
        let none = || NodeFailure::ServerError("b: none".into());
        assert_eq!(merge_failures(vec![none()]), none());
        let both = NodeFailure::Unreachable("a: lost; b: none".into());
        assert_eq!(merge_failures(vec![lost(), none()]), both);
        let denied = merge_failures(vec![lost(), NodeFailure::AccessDenied("c: no".into())]);
        assert_eq!(denied, NodeFailure::AccessDenied("a: lost; c: no".into()));
    }
}
