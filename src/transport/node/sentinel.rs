//! Finding the master that sentinels watch: they are asked in turn, and what they say is checked with the master itself.
//!
//! As the guidelines for clients have it (Redis documentation, *Guidelines for Redis clients with support for Sentinel*),
//! and with an end for each step: what `redis` brings for this connects to a sentinel without a time-out.

use std::time::Instant;

use log::debug;
use redis::{RedisConnectionInfo, Value};

use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Cause, Error};
use crate::time::clock;
use crate::transport::node::address::Server;
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::transport::node::discovery;
use crate::transport::node::stream::Wire;

/// Where a sentinel listens, if its address does not say.
const PORT: u16 = 26379;

/// A master by its name, and the sentinels that know where it is.
pub(crate) struct Watch {
    master: String,
    /// Each with a server like the master, if that one names it.
    sentinels: Vec<(Server, Server)>,
    name: String,
}

impl Watch {
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn new(
        master: &str,
        sentinels: &[Address],
        settings: &Settings,
    ) -> Result<Watch, Error> {
        let read = |address| Server::read_guide(address, settings, PORT);
        let sentinels = sentinels.iter().map(read);
        let sentinels = sentinels.collect::<Result<Vec<Server>, Error>>()?;
        let first = sentinels.first().map(Server::place);
        let name = format!("sentinel:{master}@{}", first.unwrap_or_default());
        let with_master = |sentinel: Server| {
            let like = sentinel.like_a_node(settings, &name);
            (sentinel, like)
        };
        Ok(Watch {
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
    pub(crate) fn open(&self, end: Instant) -> Result<(Wire, Server), Cause> {
        let mut causes = Vec::new();
        for (index, (sentinel, like)) in self.sentinels.iter().enumerate() {
            let others = (self.sentinels.len() - index) as u32;
            let now = clock::now();
            let turn = end.saturating_duration_since(now) / others;
            let answer = self.ask(sentinel, now + turn / 2);
            let server = answer.map(|(host, port)| like.at(&host, port));
            match server.and_then(|server| open_master(server, now + turn)) {
                Ok((connection, server)) => {
                    debug!("{}: it is {}", self.name(), server.place());
                    return Ok((connection, server));
                }
                Err(cause) => causes.push(discovery::of(&sentinel.place(), cause)),
            }
        }
        Err(together(causes))
    }

    /// Where the master is, as a sentinel says.
    fn ask(&self, sentinel: &Server, end: Instant) -> Result<(String, u16), Cause> {
        let (mut connection, sentinel) = sentinel.open(end)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let answer: Option<(String, u16)> = sentinel.ask(&mut connection, &question, end)?;
        match answer {
            Some((host, _)) if !discovery::is_host(&host) => {
                Err(Cause::Server("what it names is no host".into()))
            }
            Some(place) => Ok(place),
            None => Err(Cause::Server(format!(
                "it knows no master {:?}",
                self.master
            ))),
        }
    }
}

impl Server {
    /// The same with the credentials of the settings in place of its own, and their database.
    fn like_a_node(&self, settings: &Settings, node: &str) -> Server {
        let db = settings.db.map_or(0, i64::from);
        let redis = RedisConnectionInfo::default().set_db(db);
        self.clone().with(redis).with_login(settings, node)
    }
}

/// A connection to a server that says itself that it is a master: a sentinel may not know yet, or the server may not.
fn open_master(server: Server, end: Instant) -> Result<(Wire, Server), Cause> {
    let place = server.place();
    let cause = |cause| discovery::of(&place, cause);
    let (mut connection, server) = server.open(end).map_err(cause)?;
    let role: Vec<Value> = server
        .ask(&mut connection, &redis::cmd("ROLE"), end)
        .map_err(cause)?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok((connection, server)),
        _ => Err(cause(Cause::Server("it says that it is no master".into()))),
    }
}

/// What all sentinels say. Wrong credentials do not pass by waiting, so they are told as such.
fn together(mut causes: Vec<Cause>) -> Cause {
    if causes.len() == 1 {
        return causes.remove(0);
    }
    let is_denied = causes.iter().any(|cause| matches!(cause, Cause::Denied(_)));
    let texts: Vec<String> = causes.into_iter().map(words).collect();
    let text = texts.join("; ");
    match is_denied {
        true => Cause::Denied(text),
        false => Cause::Unreachable(text),
    }
}

/// A cause's own words.
fn words(cause: Cause) -> String {
    match cause {
        Cause::Denied(text) | Cause::Server(text) | Cause::Unreachable(text) => text,
        other => other.to_string(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::builder::Config;
    use crate::config::endpoint::{Endpoint, Kind};

    fn watch(sentinels: &[&str], config: impl FnOnce(Config) -> Config) -> Result<Watch, Error> {
        let endpoint = Endpoint::sentinel("m", sentinels);
        let settings = config(Config::new([endpoint])).check()?;
        match settings.endpoints[0].kind() {
            Kind::Sentinel { master, sentinels } => Watch::new(master, sentinels, &settings),
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
            let settings = |server: &Server| {
                let redis = server.info.redis_settings();
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                (text(redis.username()), text(redis.password()), redis.db())
            };
            (sentinel.place(), settings(sentinel), settings(like))
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
            let master = like.at("10.0.0.1", 7);
            assert_eq!(master.place(), "10.0.0.1:7");
            matches!(master.info.addr(), ConnectionAddr::TcpTls { .. })
        });
        assert_eq!(is_over_tls.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_sentinels_say_is_told_together_and_wrong_credentials_as_such() {
        let lost = || Cause::Unreachable("a: lost".into());
        let none = || Cause::Server("b: none".into());
        assert_eq!(together(vec![none()]), none());
        let both = Cause::Unreachable("a: lost; b: none".into());
        assert_eq!(together(vec![lost(), none()]), both);
        let denied = together(vec![lost(), Cause::Denied("c: no".into())]);
        assert_eq!(denied, Cause::Denied("a: lost; c: no".into()));
    }
}
