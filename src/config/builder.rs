//! What a user can set: the nodes' addresses and how the library deals with them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::credentials::Credentials;
use crate::config::endpoint::IntoEndpoints;
use crate::config::on_drop::OnDrop;
use crate::config::settings::Settings;
#[cfg(feature = "tls")]
use crate::config::tls::Tls;
use crate::error::Error;
use crate::protocol::retry::RetryPolicy;
use crate::telemetry::observer::Observer;

/// The nodes, and how to deal with them. A builder that is passed by value.
///
/// Everything is checked when connecting, before any I/O: see [`Nodes::connect`](crate::Nodes::connect).
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
/// For nodes that are far away and may restart without their data, with a look inside:
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

impl Config {
    /// A configuration of these nodes, which must be independent masters, and defaults for everything else.
    ///
    /// Locks need a quorum of all of them, `n / 2 + 1`, whatever is reachable. So take an odd number: two nodes
    /// have no quorum with one down, and of four a tie is a loss for both sides.
    ///
    /// One node is a list of one: `Config::new(["10.0.0.1"])`.
    pub fn new<I: IntoEndpoints>(nodes: I) -> Config {
        Config {
            settings: Settings::new(nodes.into_iter().map(Into::into).collect()),
        }
    }

    /// The ACL user for nodes whose address names none. Default: the server's `default` user.
    pub fn username(mut self, username: impl Into<String>) -> Config {
        self.settings.username = Some(username.into());
        self
    }

    /// The password for nodes whose address names none. Default: none.
    pub fn password(mut self, password: impl Into<String>) -> Config {
        self.settings.password = Some(password.into());
        self
    }

    /// User and password for nodes whose address names none, from a function that is called before each connect with the node's
    /// name (as in [`Health`](crate::Health)): for passwords and tokens that change while the program runs. In place of
    /// [`username`](Config::username) and [`password`](Config::password). Default: none.
    ///
    /// It is called for each connection: a node's own ones, the one for wake-ups, a master that sentinels name, each master of a
    /// cluster. A connection that stands is not logged in again: a server that ends those with former credentials is connected to
    /// with the new ones, and where a login is refused the next connect asks again. The function is called on threads of the
    /// library, perhaps on several at once, and its time is a part of `connect_timeout`: so let it return what another thread has
    /// fetched. If it panics, that connect fails.
    ///
    /// ```
    /// use redguard::{Config, Credentials};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let token = Arc::new(Mutex::new("of the first quarter of an hour".to_owned()));
    /// let current = Arc::clone(&token);
    /// let config = Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    ///     .credentials(move |_node| Credentials::new("worker", &*current.lock().unwrap()));
    /// // … and whoever renews the token stores it there:
    /// *token.lock().unwrap() = "of the second".to_owned();
    /// ```
    pub fn credentials<F>(mut self, provider: F) -> Config
    where
        F: Fn(&str) -> Credentials + Send + Sync + 'static,
    {
        self.settings.credentials = Some(Arc::new(provider));
        self
    }

    /// The database number for nodes whose address names none; a cluster has none but 0. Default: 0.
    pub fn db(mut self, db: u32) -> Config {
        self.settings.db = Some(db);
        self
    }

    /// TLS for all nodes: an address without a scheme is spoken to over TLS, and one that says otherwise (`redis://`,
    /// `unix://`) is refused when connecting. With the feature `tls`. Default: TLS for `rediss://` addresses alone, as
    /// [`Tls::new()`] has it.
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

    /// Connections per node, 1 to 64, each with a thread of its own. A key always uses the same one, and a
    /// lock of several keys that of its first. More than one
    /// pays only where a single connection's throughput is the limit. Default: 1.
    pub fn pool_size(mut self, connections: usize) -> Config {
        self.settings.pool_size = connections;
        self
    }

    /// What stands before every lock name to make its key on the nodes. Clients that share locks must agree on it.
    /// Default: `redguard:`.
    ///
    /// With an empty one a read-write lock or semaphore cannot be named `{x}`, in braces as a whole: it would have the same keys
    /// on the nodes as `x`, and is [`InvalidKey`](crate::Error::InvalidKey).
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Config {
        self.settings.key_prefix = prefix.into();
        self
    }

    /// A label that is stored before the token, so that an operator sees who holds a lock: at most 64 printable
    /// ASCII characters without `:`. Default: none.
    pub fn owner_label(mut self, label: impl Into<String>) -> Config {
        self.settings.owner_label = Some(label.into());
        self
    }

    /// How acquires try again and when they give up. Default: [`RetryPolicy::default()`], without a limit.
    pub fn retry(mut self, policy: RetryPolicy) -> Config {
        self.settings.retry = policy;
        self
    }

    /// How long a node has to answer a request before it counts as hung and is connected to anew. A round with a
    /// hung node takes this long at most, and only until the node is known as hung. Default: 200 ms.
    pub fn node_timeout(mut self, timeout: Duration) -> Config {
        self.settings.node_timeout = timeout;
        self
    }

    /// How long connecting to a node, its handshake included, may take; all addresses of a name together, of which each has an
    /// equal share of what is left. At least `node_timeout`, at most an hour. Default: 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Config {
        self.settings.connect_timeout = timeout;
        self
    }

    /// The part of the TTL, 0.0 to below 0.99, that must be left as validity when a guard is handed out. An
    /// attempt that took too long for it is undone. Default: 0.5.
    pub fn min_validity(mut self, fraction: f64) -> Config {
        self.settings.min_validity = fraction;
        self
    }

    /// How long a guard's `Drop` waits for its release. Default: [`OnDrop::Wait`].
    pub fn on_drop(mut self, on_drop: OnDrop) -> Config {
        self.settings.on_drop = on_drop;
        self
    }

    /// When to stop asking nodes of which no quorum replies: after `threshold` rounds in a row (and 1 s) without one, for `breaker_open_for`
    /// or until a quorum of nodes is connected again. An acquire that does not wait is [`CircuitOpen`](Error::CircuitOpen) at once
    /// meanwhile; an acquire that waits sleeps, for [`max_outage`](RetryPolicy::max_outage) at most. Then
    /// one acquire asks the nodes, and all others wait for its result. Rounds that overlap in time count once;
    /// contention and error replies do not count. `u32::MAX` never stops asking. Default: 5 rounds, 60 s.
    pub fn circuit_breaker(mut self, threshold: u32, open_for: Duration) -> Config {
        self.settings.breaker_threshold = threshold;
        self.settings.breaker_open_for = open_for;
        self
    }

    /// Whether locks are held **in this process alone** while no quorum of nodes can be reached: when connecting, or when the
    /// [`circuit_breaker`](Config::circuit_breaker) is open and fresh connects have failed too. Threads of this process exclude each other all the time, **other processes are
    /// not excluded**, and each of them may hold the same lock. So it is for work where doing nothing is worse than doing it
    /// twice. Such a guard says [`Mode::Local`](crate::Mode::Local) and does not expire; a fenced lock is never taken so, and
    /// wrong credentials or another error that nodes reply never lead there. When nodes are back new locks are held on them again. Default: `false`.
    pub fn allow_degraded(mut self, allow: bool) -> Config {
        self.settings.allow_degraded = allow;
        self
    }

    /// Keeps a node that has started a short time ago from voting on new locks, since it may have come back without the locks
    /// that it had granted: until it has been up for `max_ttl`, an allowance for drift (`max_ttl / 100 + 2 ms`) and 1 s, by which
    /// servers round their uptime. By then every lock that it can have forgotten has ended. This is what the Redlock text
    /// (*Distributed Locks with Redis*, "Performance, crash recovery and fsync") asks operators to do by hand.
    ///
    /// TTLs and extensions above `max_ttl` are [`InvalidTtl`](Error::InvalidTtl). Releases, extensions, and what they put back
    /// are served all the time. Where a quorum is in quarantine a lock is contended, with the time until it votes.
    ///
    /// **Every client** of the nodes must set it, to the longest TTL that *any* of them uses or more: one that does not takes from
    /// such a node what another still holds. A server's clock that is set forward while it runs makes its uptime longer, and the
    /// quarantine shorter by as much. More than zero, and not with a Sentinel's master or a cluster, which can forget locks without
    /// a restart. Default: off.
    pub fn restart_quarantine(mut self, max_ttl: Duration) -> Config {
        self.settings.restart_quarantine = Some(max_ttl);
        self
    }

    /// Whether a node that can evict locks (`maxmemory` with another policy than `noeviction`) is not used, in place of a
    /// warning in the log that names it. A node is asked for this, and whether it is a replica, when it is connected to: what is
    /// set later is seen at the next connect. Default: `false`.
    pub fn reject_evicting_servers(mut self, strict: bool) -> Config {
        self.settings.reject_evicting_servers = strict;
        self
    }

    /// Who is told of each grant, loss and release, and of each node's replies. Default: nobody.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Config {
        self.settings.observer = Some(observer);
        self
    }

    /// # Errors
    /// `NoAddresses` and `InvalidConfig`, which names what was given.
    pub(crate) fn validate(self) -> Result<Settings, Error> {
        self.settings.validate()
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
            .field("owner", &s.owner_label)
            .field("retry", &s.retry)
            .field("node_timeout", &s.node_timeout)
            .field("connect_timeout", &s.connect_timeout)
            .field("min_validity", &s.min_validity)
            .field("on_drop", &s.on_drop)
            .field("breaker", &(s.breaker_threshold, s.breaker_open_for))
            .field("allow_degraded", &s.allow_degraded)
            .field("restart_quarantine", &s.restart_quarantine)
            .field("strict_servers", &s.reject_evicting_servers)
            .field("observer", &s.observer.as_ref().map(|_| ".."))
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
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
