//! The handle on the N nodes with their threads: connecting to them and shutting them down.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::config::builder::Config;
use crate::config::endpoint::EndpointKind;
use crate::config::settings::Settings;
use crate::engine::core::Engine;
use crate::error::{AnswerLimit, Error, Operation};
use crate::telemetry::health::Health;
use crate::telemetry::stats::{LockCounters, Stats};
use crate::time::{clock, deadline};
use crate::transport::messages::NodeConfig;
use crate::transport::node::factory;
use crate::transport::node_group;
use crate::transport::startup::wait_for_quorum;
use crate::transport::worker_pool::WorkerPool;

/// The configured nodes, connected: what the lockers of a process share. A cheap clone of one handle.
///
/// Have one per process: threads that share it queue for a key in the process, in order, before Redis is asked,
/// and their requests travel together. Two of them exclude each other through Redis only.
///
/// Each connection has a thread, named `redguard-…`. When the last handle goes, guards included, what is queued is
/// sent to the nodes that answer, for `node_timeout` at most, and the threads end; [`shutdown`](Nodes::shutdown) does so in an orderly way.
///
/// ```no_run
/// use redguard::{Config, Locker, Nodes, RedisLocker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
/// let locker = RedisLocker::new(&nodes);
/// std::thread::scope(|scope| {
///     for _ in 0..8 {
///         scope.spawn(|| {
///             let _guard = locker.lock("shared", Duration::from_secs(10));
///         });
///     }
/// });
/// nodes.shutdown(Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Nodes {
    engine: Arc<Engine>,
}

impl Nodes {
    /// Connects to all nodes at the same time, and succeeds when a quorum of them has answered.
    ///
    /// The others are kept: they count in every quorum, and are connected to in the background. Blocks until a
    /// quorum has answered and then, for nodes of which nothing has been heard, as long again (10 ms at least).
    /// Without a quorum it tries again and again and blocks for `connect_timeout`: nodes may be about to start; for those that take
    /// longer [the guide](crate::guide#a-programs-main) has a loop. With
    /// [`allow_degraded`](Config::allow_degraded) it succeeds then, and locks are held in this process until a quorum is up.
    ///
    /// # Errors
    /// [`NoAddresses`](Error::NoAddresses) and [`InvalidConfig`](Error::InvalidConfig) for settings that are out of
    /// range or contradict each other, also for two addresses of one server;
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) with a cause per node, in degraded mode only where a quorum of nodes
    /// replied, be it with an error: wrong credentials, for example;
    /// [`System`](Error::System) when there are no threads to be had.
    pub fn connect(config: Config) -> Result<Nodes, Error> {
        let settings = config.validate()?;
        let mut places = HashSet::new();
        let mut posts = Vec::new();
        for endpoint in &settings.endpoints {
            let (name, connector) = factory::make_connector(endpoint, &settings)?;
            if !places.insert(name.clone()) {
                return Err(Error::InvalidConfig(format!("{name} is named twice")));
            }
            posts.push(NodeConfig {
                name,
                connector,
                node_timeout: settings.node_timeout,
                restart_quarantine: settings.restart_quarantine,
                reject_evicting: settings.reject_evicting_servers,
                is_one_server: matches!(endpoint.kind(), EndpointKind::Server(_)),
                observer: settings.observer.clone(),
            });
        }
        Nodes::start(settings, &posts)
    }

    /// The part of `connect` behind the seam.
    pub(crate) fn start(settings: Settings, posts: &[NodeConfig]) -> Result<Nodes, Error> {
        let total = posts.len();
        if total.is_multiple_of(2) {
            warn!(
                "{total} nodes: an even number has no more quorums than one less, and a tie is a loss for both sides"
            );
        }
        let start = clock::now();
        let (crew, first) = WorkerPool::spawn(posts, settings.pool_size)?;
        let names: Vec<String> = posts.iter().map(|post| post.name.clone()).collect();
        let missing = match wait_for_quorum(&first, &settings, &names, start) {
            Ok(Some(tally)) if !(settings.allow_degraded && tally.is_outage()) => {
                let error = tally.into_error(Operation::Connect, |node| names[node].clone());
                let connect_timeout = settings.connect_timeout;
                Err(error.with_limits(|_| AnswerLimit::Connect { connect_timeout }))
            }
            mustered => mustered,
        };
        let missing = missing.inspect_err(|_| {
            // Those that are still connecting end when they notice.
            crew.shutdown(clock::now());
        })?;
        let meter = LockCounters::new(settings.observer.clone());
        let nodes = node_group::NodeGroup::new(crew, names, settings.pool_size, meter);
        let connectors = posts.iter().map(|post| Arc::clone(&post.connector));
        let engine = Engine::new(settings, nodes, connectors.collect())?;
        if let Some(tally) = missing {
            engine.start_degraded(start, &tally);
        }
        Ok(Nodes {
            engine: Arc::new(engine),
        })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// How many guards could not be released by their `Drop`: lost by then, or not confirmed by a quorum.
    ///
    /// ```no_run
    /// # fn end(nodes: &redguard::Nodes) {
    /// if nodes.drop_failures() > 0 {
    ///     eprintln!("some locks were lost, or are left to their TTLs: the log has them");
    /// }
    /// # }
    /// ```
    pub fn drop_failures(&self) -> u64 {
        self.engine.drop_failures()
    }

    /// What has happened to locks on these nodes since they were connected, in numbers. Does not block.
    ///
    /// ```no_run
    /// use redguard::{Config, Nodes};
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// // … work …
    /// let stats = nodes.stats();
    /// println!("{} locks, after {:?} on average", stats.acquired, stats.wait_time.mean());
    /// for node in &stats.nodes {
    ///     println!("{}: {} requests without an answer", node.node, node.no_reply);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// How the nodes are at this moment, and whether they are asked. Does not block.
    ///
    /// ```no_run
    /// use redguard::{Config, NodeState, Nodes};
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// for node in &nodes.health().nodes {
    ///     if let (NodeState::Suspect, Some(cause)) = (node.state, &node.cause) {
    ///         eprintln!("{} has not answered for {:?}: {cause}", node.node, node.since.elapsed());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// Waits until a quorum of nodes is connected, for `limit` at most; zero only looks, [`Duration::MAX`] sets no limit. For
    /// programs that may start before their nodes ([`Config::allow_degraded`]) or want to see them back.
    ///
    /// # Errors
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) with a cause for each node that is not connected;
    /// [`Closed`](Error::Closed) after a shutdown, also of one that waits.
    ///
    /// ```no_run
    /// use redguard::{Config, Nodes};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]).allow_degraded(true))?;
    /// if let Err(error) = nodes.wait_ready(Duration::from_secs(60)) {
    ///     eprintln!("goes on with locks in this process alone: {error}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        self.engine
            .wait_ready(deadline::deadline(clock::now(), limit))
    }

    /// Ends the nodes' service: from now on every acquire is [`Closed`](Error::Closed), those that wait included.
    ///
    /// Guards whose lock is held are waited for, at most for `grace` (do not call it with one in your own hands); then what is
    /// queued is sent and the threads end, for `node_timeout` more at most. Guards that are alive after that are lost
    /// and their keys left to the TTL: nothing in use is ever deleted. `true` if none was and all threads have ended.
    /// A second call finds nothing left to do.
    ///
    /// A program that ends without it drains too, but only when the last handle goes: one that a thread keeps, or a
    /// guard in a static, is enough to leave releases unsent. So call this at the end of `main`.
    pub fn shutdown(&self, grace: Duration) -> bool {
        self.engine.shutdown(grace)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nodes").field(&self.engine).finish()
    }
}
