//! `Nodes`: connects to the nodes, reports on them, and shuts them down.
//!
//! The last handle or guard that is dropped ends all threads, within a bound. A shutdown deletes no
//! key that is in use.
//!
//! Tests: `src/tests/engine/shutdown.rs`; `tests/it/nodes/connecting.rs`, `observability.rs`.

use std::collections::HashSet;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::config::builder::Config;
use crate::config::endpoint::EndpointKind;
use crate::config::settings::Settings;
use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::error::failed_node::ReplyLimit;
use crate::error::operation::Operation;
use crate::protocol::quorum::Tally;
use crate::telemetry::health::Health;
use crate::telemetry::stats::{LockCounters, Stats};
use crate::time::{clock, deadline};
use crate::transport::messages::{NodeConfig, PING_INTERVAL};
use crate::transport::node::factory;
use crate::transport::node_group;
use crate::transport::startup::wait_for_quorum;
use crate::transport::worker_pool::WorkerPool;

/// The configured nodes with their connections, shared by the lockers of a process. A cheap clone
/// of one handle.
///
/// Use one per process. Threads that share it queue for a key in the process, in order, before the
/// nodes are asked, and their requests are sent together. Two `Nodes` exclude each other only
/// through the servers.
///
/// Each connection has a worker thread, named `redguard-…`. When the last handle is dropped, guards
/// included, queued releases are sent to the nodes that reply, and the threads end. That drop
/// blocks for at most `node_timeout`. [`shutdown`](Nodes::shutdown) does so explicitly.
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
/// if !nodes.shutdown(Duration::from_secs(5)) {
///     eprintln!("guards are left: their locks end with their TTLs");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Nodes {
    engine: Arc<Engine>,
}

impl Nodes {
    /// Connects to all nodes at the same time, and returns when a quorum is connected.
    ///
    /// The other nodes count in every quorum, and are connected to in the background. After the
    /// quorum, nodes that have not replied yet get as long again, at least 10 ms.
    ///
    /// Without a quorum this blocks for `connect_timeout` and repeats its attempts, because nodes
    /// may be starting. That includes nodes that refuse the credentials. [The
    /// guide](crate::guide::getting_started#nodes-that-are-not-up-yet) has a loop for longer waits.
    /// With [`allow_degraded`](Config::allow_degraded) it then succeeds, and locks are held in this
    /// process until a quorum is connected.
    ///
    /// # Errors
    /// - [`NoAddresses`](Error::NoAddresses): the list of nodes is empty.
    /// - [`InvalidConfig`](Error::InvalidConfig): settings are out of range or contradict each
    ///   other, an address cannot be parsed, or two addresses are one server.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes are connected, with a
    ///   cause for each. In degraded mode only if a quorum of nodes replied, with errors included:
    ///   wrong credentials, for example.
    /// - [`System`](Error::System): the operating system has no threads left, or no random bytes.
    pub fn connect(config: Config) -> Result<Nodes, Error> {
        let settings = config.validate()?;
        let mut seen_names = HashSet::new();
        let mut nodes = Vec::new();
        for endpoint in &settings.endpoints {
            let (name, connector) = factory::make_connector(endpoint, &settings)?;
            if !seen_names.insert(name.clone()) {
                return Err(Error::InvalidConfig(format!("{name} is named twice")));
            }
            nodes.push(NodeConfig {
                name,
                connector,
                node_timeout: settings.node_timeout,
                ping_interval: PING_INTERVAL,
                restart_quarantine: settings.restart_quarantine,
                reject_evicting: settings.reject_evicting_servers,
                is_one_server: matches!(endpoint.kind(), EndpointKind::Server(_)),
                observer: settings.observer.clone(),
            });
        }
        Nodes::start(settings, &nodes)
    }

    /// Starts the workers of validated nodes and waits for a quorum. Tests call it with fake nodes.
    pub(crate) fn start(settings: Settings, configs: &[NodeConfig]) -> Result<Nodes, Error> {
        let total = configs.len();
        if total.is_multiple_of(2) {
            warn!(
                "{total} nodes: even number, which tolerates no more failures than one node less"
            );
        }
        let start = clock::now();
        let (workers, connects) = WorkerPool::spawn(configs, settings.pool_size)?;
        let names: Vec<String> = configs.iter().map(|node| node.name.clone()).collect();
        let connected = wait_for_quorum(&connects, &settings, &names, start)
            .and_then(|missing| accept_missing(missing, &settings, &names));
        // Workers that are still connecting end when they notice the shutdown.
        let missing = connected.inspect_err(|_| _ = workers.shutdown(clock::now()))?;
        let counters = LockCounters::new(settings.observer.clone());
        let nodes = node_group::NodeGroup::new(workers, names, settings.pool_size, counters);
        let connectors = configs.iter().map(|node| Arc::clone(&node.connector));
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

    /// Returns how many guards failed to release their lock in `Drop`: it was lost, or a quorum did
    /// not confirm.
    ///
    /// ```no_run
    /// # fn end(nodes: &redguard::Nodes) {
    /// if nodes.drop_failures() > 0 {
    ///     eprintln!("some locks were lost, or are left to their TTLs: see the log");
    /// }
    /// # }
    /// ```
    pub fn drop_failures(&self) -> u64 {
        self.engine.drop_failures()
    }

    /// Returns the counts of lock events and requests since these nodes were connected. Does not
    /// block.
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

    /// Returns the present state of the circuit breaker and of each node. Does not block.
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

    /// Blocks until a quorum of nodes is connected, for at most `limit`; zero does not block,
    /// [`Duration::MAX`] sets no limit.
    ///
    /// For programs that may start before their nodes ([`Config::allow_degraded`]), or wait for the
    /// end of an outage.
    ///
    /// # Errors
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): the limit was reached, with a cause for
    ///   each node that is not connected.
    /// - [`Closed`](Error::Closed): the nodes are shut down, before or during the wait.
    ///
    /// ```no_run
    /// use redguard::{Config, Nodes};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let config = Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]).allow_degraded(true);
    /// let nodes = Nodes::connect(config)?;
    /// if let Err(error) = nodes.wait_ready(Duration::from_secs(60)) {
    ///     eprintln!("continuing with locks in this process alone: {error}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        self.engine
            .wait_ready(deadline::deadline(clock::now(), limit))
    }

    /// Shuts the nodes down: from now on every acquire is [`Closed`](Error::Closed), waiting ones
    /// included.
    ///
    /// Blocks until all guards whose lock is held have ended, for at most `grace`; so do not call
    /// it while the calling thread holds one. Then it waits for acquires in progress, sends the
    /// queued releases and ends the threads, for at most twice `node_timeout` more. Locks of guards
    /// that are still alive are lost and left to their TTLs; a lock in use is never deleted.
    ///
    /// Returns `true` if no such guard and no acquire was left and all threads have ended. A thread
    /// that is connecting, and has no release to send, ends by itself and does not count. The
    /// threads and acquires that did not end in time are named in a `warn` line. Returns `false` at
    /// once in a forked child. A second call has nothing left to do.
    ///
    /// Call it at the end of `main`. Without it queued releases are sent when the last handle is
    /// dropped, which does not happen while a thread or a static keeps a handle or a guard.
    #[must_use = "`false` means that guards were left, or threads have not ended"]
    pub fn shutdown(&self, grace: Duration) -> bool {
        self.engine.shutdown(grace)
    }
}

/// Accepts nodes without a quorum if degraded mode is allowed and the nodes are out of service.
///
/// # Errors
/// `InsufficientQuorum` otherwise.
fn accept_missing(
    missing: Option<Tally>,
    settings: &Settings,
    names: &[String],
) -> Result<Option<Tally>, Error> {
    match missing {
        Some(tally) if !(settings.allow_degraded && tally.is_outage()) => {
            let error = tally.into_error(Operation::Connect, |node| names[node].clone());
            let connect_timeout = settings.connect_timeout;
            Err(error.with_limits(|_| ReplyLimit::Connect { connect_timeout }))
        }
        accepted => Ok(accepted),
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for Nodes {}
impl RefUnwindSafe for Nodes {}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nodes").field(&self.engine).finish()
    }
}
