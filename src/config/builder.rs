//! `Config`: the nodes' addresses and all settings.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::address;
use crate::config::credentials::Credentials;
use crate::config::endpoint::IntoEndpoints;
use crate::config::on_drop::OnDrop;
use crate::config::settings::Settings;
#[cfg(feature = "tls")]
use crate::config::tls::Tls;
use crate::error::error::Error;
use crate::protocol::retry::RetryPolicy;
use crate::telemetry::observer::Observer;

/// The addresses of the nodes and all settings: a builder that is passed by value.
///
/// [`Nodes::connect`](crate::Nodes::connect) validates it before any I/O.
///
/// ```
/// use redguard::{Config, OnDrop, RetryPolicy};
/// use std::time::Duration;
///
/// let config = Config::new(["10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"])
///     .password("s3cret")
///     .key_prefix("billing:")
///     .owner_label("nightly-7")
///     .node_timeout(Duration::from_millis(100))
///     .retry(RetryPolicy { max_wait: Some(Duration::from_secs(5)), ..RetryPolicy::default() })
///     .on_drop(OnDrop::Background);
/// ```
///
/// For distant nodes that may restart without their data, with an observer:
///
/// ```
/// # use redguard::{Config, Observer};
/// # use std::sync::Arc;
/// # use std::time::Duration;
/// # fn careful(observer: Arc<dyn Observer>) -> Config {
/// Config::new(["10.1.0.1", "10.2.0.1", "10.3.0.1"])
///     .username("locks")
///     .password("s3cret")
///     .db(2)
///     .pool_size(2)
///     .node_timeout(Duration::from_millis(500))
///     .connect_timeout(Duration::from_secs(3))
///     .min_validity(0.3)
///     .circuit_breaker(10, Duration::from_secs(30))
///     .restart_quarantine(Duration::from_secs(60))
///     .reject_evicting_servers(true)
///     .allow_degraded(false)
///     .observer(observer)
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing until it is connected"]
pub struct Config {
    settings: Settings,
}

/// A panic cannot leave it inconsistent: a connected configuration does not change, and its
/// function and its observer are only called where their panic is caught.
impl UnwindSafe for Config {}
impl RefUnwindSafe for Config {}

impl Config {
    /// Creates a configuration of these nodes, 1 to 64, with defaults for everything else. The
    /// nodes must be independent masters.
    ///
    /// Locks need a quorum of all nodes, `n / 2 + 1`, also while some are down. Choose an odd
    /// number: of two nodes no quorum is left with one down, and of four neither half is one.
    ///
    /// A single node is a list of one: `Config::new(["10.0.0.1"])`.
    pub fn new<I: IntoEndpoints>(nodes: I) -> Config {
        Config {
            settings: Settings::new(nodes.into_iter().map(Into::into).collect()),
        }
    }

    /// Sets the ACL user for nodes whose address has neither a user nor a password; an address with
    /// a password alone logs in as the server's `default` user. Without
    /// [`password`](Config::password) it is [`InvalidConfig`](Error::InvalidConfig). Default: the
    /// server's `default` user.
    pub fn username(mut self, username: impl Into<String>) -> Config {
        self.settings.username = Some(username.into());
        self
    }

    /// Sets the password for nodes whose address has none. An empty one is sent, too, so leave
    /// the setting out where an environment variable is empty. Default: none.
    pub fn password(mut self, password: impl Into<String>) -> Config {
        self.settings.password = Some(password.into());
        self
    }

    /// Sets a function that returns user and password before each connect, for credentials that
    /// change while the program runs. It gets the node's name, as in [`Health`](crate::Health), and
    /// is called only for nodes whose address has no password; a user in the address is kept.
    /// Together with [`username`](Config::username) or [`password`](Config::password) it is
    /// [`InvalidConfig`](Error::InvalidConfig). Default: none.
    ///
    /// The function is called for each connection of a node, also to a master that sentinels name,
    /// to each master of a cluster, and for release notifications. An open connection is not logged
    /// in again. A server that ends connections with former credentials is reconnected with the new
    /// ones, and after a refused login the next connect calls the function again.
    ///
    /// The function runs on threads of the library, perhaps on several at once. Its time is part of
    /// `connect_timeout`, so it should return credentials that another thread has fetched. If it
    /// panics, that connect fails.
    ///
    /// ```
    /// use redguard::{Config, Credentials};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let token = Arc::new(Mutex::new("of the first quarter of an hour".to_owned()));
    /// let current = Arc::clone(&token);
    /// let config = Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    ///     .credentials(move |_node| Credentials::new("worker", &*current.lock().unwrap()));
    /// // … and the thread that renews the token stores it there:
    /// *token.lock().unwrap() = "of the second".to_owned();
    /// ```
    pub fn credentials<F>(mut self, provider: F) -> Config
    where
        F: Fn(&str) -> Credentials + Send + Sync + 'static,
    {
        self.settings.credentials = Some(Arc::new(provider));
        self
    }

    /// Sets the database number for nodes whose address names none; a cluster has only 0. Default:
    /// 0.
    pub fn db(mut self, db: u32) -> Config {
        self.settings.db = Some(db);
        self
    }

    /// Sets TLS for all nodes: addresses without a scheme are connected to over TLS, and an address
    /// of another scheme (`redis://`, `unix://`) is [`InvalidConfig`](Error::InvalidConfig). With
    /// the feature `tls`. Default: TLS only for `rediss://` addresses, with [`Tls::new()`].
    ///
    /// ```
    /// use redguard::{Config, Tls};
    ///
    /// let config = Config::new(["redis-1.internal:6380"]).tls(Tls::new());
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Config {
        self.settings.tls = Some(tls);
        self
    }

    /// Sets the connections per node, 1 to 64, each with a thread of its own. A key always uses the
    /// same connection; a lock of several keys uses the connection of its first. More connections
    /// help only if the throughput of one is the limit. Default: 1.
    pub fn pool_size(mut self, connections: usize) -> Config {
        self.settings.pool_size = connections;
        self
    }

    /// Sets the prefix of every lock name on the nodes. Clients that share locks must agree on it.
    /// Default: `redguard:`.
    ///
    /// With an empty prefix the name `{x}`, in braces as a whole, has the same keys as `x` on the
    /// nodes. It is then [`InvalidKey`](crate::Error::InvalidKey) for read-write locks and
    /// semaphores.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Config {
        self.settings.key_prefix = prefix.into();
        self
    }

    /// Sets a label that is stored before the token, which shows operators and refused callers the
    /// holder of a lock: 1 to 64 printable ASCII characters. Default: `HOST/PID` of this process.
    /// [`LockOptions::owner_label`](crate::LockOptions::owner_label) sets that of one lock.
    pub fn owner_label(mut self, label: impl Into<String>) -> Config {
        self.settings.owner_label = Some(Arc::new(label.into()));
        self.settings.no_owner_label = false;
        self
    }

    /// Stores no label before the token, so that clients which share the nodes do not see where a
    /// lock is held.
    pub fn no_owner_label(mut self) -> Config {
        self.settings.owner_label = None;
        self.settings.no_owner_label = true;
        self
    }

    /// Sets the delays and limits of acquires. Default: [`RetryPolicy::default()`], which waits
    /// without a limit.
    pub fn retry(mut self, policy: RetryPolicy) -> Config {
        self.settings.retry = policy;
        self
    }

    /// Sets how long a node may take to reply to a request; after that it counts as hung and is
    /// reconnected. A round with a hung node takes at most this long, and only until the node is
    /// known to hang. At least 1 ms, at most [`connect_timeout`](Config::connect_timeout). Default:
    /// 200 ms.
    pub fn node_timeout(mut self, timeout: Duration) -> Config {
        self.settings.node_timeout = timeout;
        self
    }

    /// Sets how long connecting to a node may take, its handshake included. The addresses of a name
    /// share this time. At least `node_timeout`, at most an hour. Default: 1 s.
    ///
    /// The resolution of a host name has no limit, nor has the connect to a Unix socket whose server
    /// hangs with a full backlog. The node stays unavailable meanwhile; no caller waits for it.
    pub fn connect_timeout(mut self, timeout: Duration) -> Config {
        self.settings.connect_timeout = timeout;
        self
    }

    /// Sets the part of the TTL, 0.0 to below 0.99, that must be left as validity when a guard is
    /// returned. A slower attempt is undone. Default: 0.5.
    pub fn min_validity(mut self, fraction: f64) -> Config {
        self.settings.min_validity = fraction;
        self
    }

    /// Sets whether a guard's `Drop` waits for its release. Default: [`OnDrop::Wait`].
    pub fn on_drop(mut self, on_drop: OnDrop) -> Config {
        self.settings.on_drop = on_drop;
        self
    }

    /// Sets the circuit breaker: after `threshold` rounds in a row (and 1 s) in which no quorum
    /// replied, the nodes are not asked for `open_for`, or until a quorum is connected again. At
    /// least 1 round, and more than zero. Default: 5 rounds, 60 s. `u32::MAX` never opens it.
    ///
    /// While the breaker is open, an acquire that does not wait returns
    /// [`CircuitOpen`](Error::CircuitOpen) at once. An acquire that waits blocks for at most
    /// [`max_outage`](RetryPolicy::max_outage). After `open_for`, one acquire asks the nodes, and
    /// the others wait for its result. If a quorum stays connected without serving, as while
    /// servers load their data, that is every 2 s. Rounds that overlap in time count once.
    /// Contention and error replies do not count.
    pub fn circuit_breaker(mut self, threshold: u32, open_for: Duration) -> Config {
        self.settings.breaker_threshold = threshold;
        self.settings.breaker_open_for = open_for;
        self
    }

    /// Sets whether locks are held **in this process alone** while no quorum of nodes can be
    /// reached: at connect, or while the [circuit breaker](Config::circuit_breaker) is open and
    /// fresh connects have failed, too. Default: `false`.
    ///
    /// Threads of this process exclude each other all the time. **Other processes are not
    /// excluded**, and each may hold the same lock; so it is for work where doing nothing is worse
    /// than doing it twice. Such a guard has [`Mode::Local`](crate::Mode::Local) and does not
    /// expire. Fenced locks are never acquired so. Error replies of nodes, wrong credentials for
    /// example, never lead to it. Once a quorum replies again, new locks are acquired on the nodes.
    pub fn allow_degraded(mut self, allow: bool) -> Config {
        self.settings.allow_degraded = allow;
        self
    }

    /// Keeps a node that has just started from voting on new locks, because it may have lost locks
    /// that it had granted. The quarantine ends when the node has been up for `max_ttl`, an
    /// allowance for drift (`max_ttl / 100 + 2 ms`) and 1 s, because servers report whole seconds.
    /// Every lock that it can have lost has ended by then. Default: off.
    ///
    /// The Redlock text (*Distributed Locks with Redis*, "Performance, crash recovery and fsync")
    /// asks operators to do this by hand. TTLs and extensions above `max_ttl` are
    /// [`InvalidTtl`](Error::InvalidTtl). Releases, extensions and restores are served all the
    /// time. If a quorum is in quarantine a lock is contended, with the time until it votes.
    ///
    /// **Every client** of the nodes must set it, to the longest TTL that *any* of them uses or
    /// more. A client without it acquires from such a node a lock that another client still holds.
    /// A server clock that is set forward while the server runs makes the quarantine shorter by as
    /// much. More than zero; not with a Sentinel-watched master or a cluster, which can lose locks
    /// without a restart.
    pub fn restart_quarantine(mut self, max_ttl: Duration) -> Config {
        self.settings.restart_quarantine = Some(max_ttl);
        self
    }

    /// Sets whether a node that can evict locks (`maxmemory` with a policy other than `noeviction`)
    /// counts as failed; else it is a warning in the log. Nodes are asked for this, and whether
    /// they are replicas, at connect: a later change is seen at the next connect. Default: `false`.
    pub fn reject_evicting_servers(mut self, reject: bool) -> Config {
        self.settings.reject_evicting_servers = reject;
        self
    }

    /// Sets an observer, which is called for each acquire, loss and release, and for each reply of
    /// a node. Default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Config {
        self.settings.observer = Some(observer);
        self
    }

    /// Validates all settings.
    ///
    /// # Errors
    /// - `NoAddresses` and `InvalidConfig`, which names the values.
    pub(crate) fn validate(self) -> Result<Settings, Error> {
        self.settings.validate()
    }
}

/// Parses addresses separated by commas, as an environment variable has them. White space around
/// them and empty parts are skipped.
///
/// ```
/// use redguard::Config;
///
/// let config: Config = "10.0.0.1:6379, 10.0.0.2:6379, 10.0.0.3:6379,".parse().unwrap();
/// assert!(" , ".parse::<Config>().is_err());
/// ```
///
/// # Errors
/// - [`NoAddresses`](Error::NoAddresses): no part is left. Each address is validated by
///   [`Nodes::connect`](crate::Nodes::connect).
impl FromStr for Config {
    type Err = Error;

    fn from_str(addresses: &str) -> Result<Config, Error> {
        let parts: Vec<&str> = address::split(addresses).collect();
        match parts[..] {
            [] => Err(Error::NoAddresses),
            _ => Ok(Config::new(parts)),
        }
    }
}

/// As [`from_str`](Config::from_str).
impl TryFrom<&str> for Config {
    type Error = Error;

    fn try_from(addresses: &str) -> Result<Config, Error> {
        addresses.parse()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.settings;
        let mut shown = f.debug_struct("Config");
        shown
            .field("nodes", &s.endpoints)
            .field("username", &s.username)
            .field("password", &s.password.as_ref().map(|_| ".."))
            .field("credentials", &s.credentials.as_ref().map(|_| ".."))
            .field("db", &s.db);
        #[cfg(feature = "tls")]
        shown.field("tls", &s.tls);
        shown
            .field("pool_size", &s.pool_size)
            .field("key_prefix", &s.key_prefix)
            .field("owner_label", &s.owner_label)
            .field("retry", &s.retry)
            .field("node_timeout", &s.node_timeout)
            .field("connect_timeout", &s.connect_timeout)
            .field("min_validity", &s.min_validity)
            .field("on_drop", &s.on_drop)
            .field(
                "circuit_breaker",
                &(s.breaker_threshold, s.breaker_open_for),
            )
            .field("allow_degraded", &s.allow_degraded)
            .field("restart_quarantine", &s.restart_quarantine)
            .field("reject_evicting_servers", &s.reject_evicting_servers)
            .field("observer", &s.observer.as_ref().map(|_| ".."))
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn list_of_addresses_is_split_and_trimmed() {
        for (text, expected) in [
            ("a", vec!["a"]),
            (
                " a:1 ,\tredis://b:2/3 ,, unix:///c\n,",
                vec!["a:1", "redis://b:2/3", "unix:///c"],
            ),
        ] {
            let config: Config = text.parse().unwrap();
            assert_eq!(
                config.settings.endpoints,
                Config::new(expected).settings.endpoints
            );
            let same = Config::try_from(text).unwrap();
            assert_eq!(format!("{same:?}"), format!("{config:?}"));
        }
        for text in ["", " ", ",, ,"] {
            assert_eq!(text.parse::<Config>().err(), Some(Error::NoAddresses));
        }
    }

    #[test]
    fn config_debug_shows_no_secret() {
        let config = Config::new([
            "redis://joe:s3cret@h:1/2",
            "joe:s3c@ret@h",
            "unix:///p?user=joe&pass=s3cret",
        ])
        .password("s3cret");
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3c"), "{shown}");
        assert!(shown.contains("redis://h:1/2") && shown.contains("unix:///p"));
    }
}
