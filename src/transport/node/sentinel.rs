//! Finding the master that sentinels watch: they are asked in turn, and what they say is checked with the master itself.
//!
//! As the guidelines for clients have it (Redis documentation, *Guidelines for Redis clients with support for Sentinel*),
//! and with an end for each step: what `redis` brings for this connects to a sentinel without a time-out.

use std::time::Instant;

use log::debug;
use redis::{RedisConnectionInfo, Value};

use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::time::clock;
use crate::transport::node::address::ServerAddress;
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::transport::node::discovery;
use crate::transport::node::stream::Stream;

/// Where a sentinel listens, if its address does not say.
const PORT: u16 = 26379;

/// A master by its name, and the sentinels that know where it is.
pub(crate) struct SentinelResolver {
    master: String,
    /// Each with a server like the master, if that one names it.
    sentinels: Vec<(ServerAddress, ServerAddress)>,
    name: String,
}

impl SentinelResolver {
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn new(
        master: &str,
        sentinels: &[Address],
        settings: &Settings,
    ) -> Result<SentinelResolver, Error> {
        let read = |address| ServerAddress::from_discovery_address(address, settings, PORT);
        let sentinels = sentinels.iter().map(read);
        let sentinels = sentinels.collect::<Result<Vec<ServerAddress>, Error>>()?;
        let first = sentinels.first().map(ServerAddress::host_port);
        let name = format!("sentinel:{master}@{}", first.unwrap_or_default());
        let with_master = |sentinel: ServerAddress| {
            let like = sentinel.as_master_template(settings, &name);
            (sentinel, like)
        };
        Ok(SentinelResolver {
            master: master.to_owned(),
            sentinels: sentinels.into_iter().map(with_master).collect(),
            name,
        })
    }

    /// The node's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection to the master. Of the time until `end` each sentinel has an equal share of what is left, half of it to
    /// answer and the other half for the server that it names.
    pub(crate) fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        let mut causes = Vec::new();
        for (index, (sentinel, like)) in self.sentinels.iter().enumerate() {
            let others = (self.sentinels.len() - index) as u32;
            let now = clock::now();
            let turn = end.saturating_duration_since(now) / others;
            let answer = self.query_master(sentinel, now + turn / 2);
            let server = answer.map(|(host, port)| like.with_host_port(&host, port));
            match server.and_then(|server| connect_master(server, now + turn)) {
                Ok((connection, server)) => {
                    debug!("{}: it is {}", self.name(), server.host_port());
                    return Ok((connection, server));
                }
                Err(cause) => causes.push(discovery::prefix_failure(&sentinel.host_port(), cause)),
            }
        }
        Err(merge_failures(causes))
    }

    /// Where the master is, as a sentinel says.
    fn query_master(
        &self,
        sentinel: &ServerAddress,
        end: Instant,
    ) -> Result<(String, u16), NodeFailure> {
        let (mut connection, sentinel) = sentinel.open(end)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let answer: Option<(String, u16)> = sentinel.query(&mut connection, &question, end)?;
        match answer {
            Some((host, _)) if !discovery::is_host(&host) => {
                Err(NodeFailure::ServerError("what it names is no host".into()))
            }
            Some(place) => Ok(place),
            None => Err(NodeFailure::ServerError(format!(
                "it knows no master {:?}",
                self.master
            ))),
        }
    }
}

impl ServerAddress {
    /// The same with the credentials of the settings in place of its own, and their database.
    fn as_master_template(&self, settings: &Settings, node: &str) -> ServerAddress {
        let db = settings.db.map_or(0, i64::from);
        let redis = RedisConnectionInfo::default().set_db(db);
        self.clone()
            .with_credentials(redis)
            .with_login(settings, node)
    }
}

/// A connection to a server that says itself that it is a master: a sentinel may not know yet, or the server may not.
fn connect_master(
    server: ServerAddress,
    end: Instant,
) -> Result<(Stream, ServerAddress), NodeFailure> {
    let place = server.host_port();
    let cause = |cause| discovery::prefix_failure(&place, cause);
    let (mut connection, server) = server.open(end).map_err(cause)?;
    let role: Vec<Value> = server
        .query(&mut connection, &redis::cmd("ROLE"), end)
        .map_err(cause)?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok((connection, server)),
        _ => Err(cause(NodeFailure::ServerError(
            "it says that it is no master".into(),
        ))),
    }
}

/// What all sentinels say. Wrong credentials do not pass by waiting, so they are told as such.
fn merge_failures(mut causes: Vec<NodeFailure>) -> NodeFailure {
    if causes.len() == 1 {
        return causes.remove(0);
    }
    let is_denied = causes
        .iter()
        .any(|cause| matches!(cause, NodeFailure::AccessDenied(_)));
    let texts: Vec<String> = causes.into_iter().map(failure_text).collect();
    let text = texts.join("; ");
    match is_denied {
        true => NodeFailure::AccessDenied(text),
        false => NodeFailure::Unreachable(text),
    }
}

/// A cause's own words.
fn failure_text(cause: NodeFailure) -> String {
    match cause {
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

    fn watch(
        sentinels: &[&str],
        config: impl FnOnce(Config) -> Config,
    ) -> Result<SentinelResolver, Error> {
        let endpoint = Endpoint::sentinel("m", sentinels);
        let settings = config(Config::new([endpoint])).validate()?;
        match settings.endpoints[0].kind() {
            EndpointKind::Sentinel { master, sentinels } => {
                SentinelResolver::new(master, sentinels, &settings)
            }
            _ => panic!("it is one"),
        }
    }

    #[test]
    fn a_sentinel_has_its_own_credentials_and_the_master_those_of_the_settings() {
        let watch = watch(&["H", "redis://joe:theirs@h:1"], |config| {
            config.username("ann").password("ours").db(3)
        })
        .unwrap();
        assert_eq!(watch.name(), "sentinel:m@h:26379");
        let logins = watch.sentinels.iter().map(|(sentinel, like)| {
            let settings = |server: &ServerAddress| {
                let redis = server.info.redis_settings();
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                (text(redis.username()), text(redis.password()), redis.db())
            };
            (sentinel.host_port(), settings(sentinel), settings(like))
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
    fn a_master_is_spoken_to_over_tls_if_its_sentinel_is() {
        use redis::ConnectionAddr;
        let watch = watch(&["h:1", "rediss://h:2"], |config| config).unwrap();
        let is_over_tls = watch.sentinels.iter().map(|(_, like)| {
            let master = like.with_host_port("10.0.0.1", 7);
            assert_eq!(master.host_port(), "10.0.0.1:7");
            matches!(master.info.addr(), ConnectionAddr::TcpTls { .. })
        });
        assert_eq!(is_over_tls.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_sentinels_say_is_told_together_and_wrong_credentials_as_such() {
        let lost = || NodeFailure::Unreachable("a: lost".into());
        let none = || NodeFailure::ServerError("b: none".into());
        assert_eq!(merge_failures(vec![none()]), none());
        let both = NodeFailure::Unreachable("a: lost; b: none".into());
        assert_eq!(merge_failures(vec![lost(), none()]), both);
        let denied = merge_failures(vec![lost(), NodeFailure::AccessDenied("c: no".into())]);
        assert_eq!(denied, NodeFailure::AccessDenied("a: lost; c: no".into()));
    }
}
