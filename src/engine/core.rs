//! The engine that guards and handles share: its parts and its health. `engine/shutdown.rs` ends it.
//!
//! Background threads never keep it alive: they hold the node group and the lock table.
//!
//! Tests: `src/tests/engine/`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::holder_check::HolderCheck;
use crate::background::loss_handler::LossHandler;
use crate::background::release_listener::listener::ReleaseListener;
use crate::background::renewal::service::RenewalService;
use crate::config::settings::Settings;
use crate::engine::breaker::SharedBreaker;
use crate::error::error::Error;
use crate::error::failed_node::ReplyLimit;
use crate::error::operation::Operation;
use crate::local::lock_table::LockTable;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::Tally;
use crate::protocol::retry::RetryPolicy;
use crate::telemetry::health::{BreakerState, Health, NodeHealth};
use crate::telemetry::stats::Stats;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::node::traits::Connector;
use crate::transport::node_group::NodeGroup;

/// Upper limit of the refresh interval, which is the policy's `max_delay` if that is shorter.
///
/// A waiting writer renews its gate entry once per refresh interval. A reader turn lasts for one;
/// gate entries and reader markers expire after three.
const MAX_REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// Lower limit of the refresh interval, because a slow round must fit into it.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(10);

/// The lock table, the nodes, and the background services of one `Nodes`.
pub(crate) struct Engine {
    pub(super) settings: Settings,
    pub(crate) lock_table: Arc<LockTable>,
    pub(crate) nodes: Arc<NodeGroup>,
    /// The retry policy of read-write locks. Its delays are at most half a refresh interval, so
    /// that no gate entry expires and no reader turn is missed.
    pub(super) rw_retry: RetryPolicy,
    pub(super) refresh_interval: Duration,
    pub(super) loss_handler: LossHandler,
    pub(crate) renewal: Arc<RenewalService>,
    pub(crate) listener: ReleaseListener,
    pub(crate) circuit: SharedBreaker,
}

impl Engine {
    /// Builds the engine. Starts no thread.
    ///
    /// # Errors
    /// - `System`: the operating system has no random bytes for the name of the private channel.
    pub(crate) fn new(
        settings: Settings,
        nodes: NodeGroup,
        connectors: Arc<[Arc<dyn Connector>]>,
    ) -> Result<Engine, Error> {
        let policy = &settings.retry;
        let refresh_interval = policy
            .max_delay
            .clamp(MIN_REFRESH_INTERVAL, MAX_REFRESH_INTERVAL);
        let max_rw_delay = refresh_interval / 2;
        let rw_retry = RetryPolicy {
            initial_delay: policy.initial_delay.min(max_rw_delay),
            max_delay: policy.max_delay.min(max_rw_delay),
            ..policy.clone()
        };
        let lock_table = Arc::new(LockTable::with_ttl_limits(settings.ttl_limits()));
        let nodes = Arc::new(nodes);
        let loss_handler = LossHandler::new(&lock_table, &nodes);
        let results = Arc::new(loss_handler.clone());
        let renewal = Arc::new(RenewalService::new(&nodes, settings.node_timeout, results));
        let watched = loss_handler.notifier().watched();
        let prefix = &settings.key_prefix;
        let holder_check = HolderCheck::new(prefix, &lock_table, &renewal, watched);
        let listener = ReleaseListener::new(prefix, &nodes, connectors, holder_check)?;
        Ok(Engine {
            rw_retry,
            refresh_interval,
            circuit: SharedBreaker::new(&settings, &nodes),
            listener,
            renewal,
            loss_handler,
            settings,
            lock_table,
            nodes,
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn nodes_up(&self) -> usize {
        self.nodes.up()
    }

    /// Returns how many messages and pending releases wait for a node.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self, node: usize) -> u64 {
        let connections = self.nodes.nodes().nth(node);
        let connections = connections.map(|(_, connections)| connections);
        let connections = connections.unwrap_or_default().iter();
        connections.map(|connection| connection.waiting()).sum()
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        self.nodes.counters().drop_failures()
    }

    /// Returns whether this process is a forked child, in which the worker threads do not exist.
    pub(crate) fn is_forked(&self) -> bool {
        self.lock_table.is_forked()
    }

    /// Opens the breaker, because no quorum could be connected to since `start` (S9).
    pub(crate) fn start_degraded(&self, start: Instant, tally: &Tally) {
        self.circuit.open(start, tally);
    }

    pub(crate) fn stats(&self) -> Stats {
        self.nodes.stats()
    }

    /// Returns the state of the breaker and of each node.
    pub(crate) fn health(&self) -> Health {
        let nodes = self.nodes.nodes();
        Health {
            breaker: BreakerState::of(self.circuit.phase()),
            nodes: nodes
                .filter_map(|(node, connections)| NodeHealth::of(node, connections))
                .collect(),
        }
    }

    /// Blocks until a quorum of nodes is connected, or until `end` (`None`: no limit).
    ///
    /// # Errors
    /// - `InsufficientQuorum`: no quorum was connected by `end`.
    /// - `Closed`: the `Nodes` shut down, or this process is a forked child.
    pub(crate) fn wait_ready(&self, end: Option<Instant>) -> Result<(), Error> {
        if self.is_forked() || self.lock_table.is_closed() {
            return Err(Error::Closed);
        }
        let is_closed = || self.lock_table.is_closed();
        let is_ready = self.nodes.wait_for_quorum(end, is_closed);
        match (is_ready, self.lock_table.is_closed()) {
            (_, true) => Err(Error::Closed),
            (true, false) => Ok(()),
            (false, false) => {
                let tally = self.nodes.connection_tally(&[]);
                Err(self.insufficient_quorum(Operation::Connect, tally))
            }
        }
    }

    /// Returns the time in which the nodes may reply to a round that begins at `start`.
    pub(super) fn node_budget(&self, start: Instant) -> Deadline {
        Deadline::new(
            DeadlineCause::NodeTimeout,
            deadline::deadline(start, self.settings.node_timeout),
        )
    }

    /// Returns the handler of lost leases.
    pub(crate) fn losses(&self) -> &LossHandler {
        &self.loss_handler
    }

    /// Stops the renewal of a lease, which then ends at its expiry.
    pub(crate) fn stop_renewal(&self, lease: &Lease) {
        if !self.is_forked() {
            self.renewal.unregister(lease);
        }
    }

    /// Returns the error of an acquire that does not wait, while the breaker is open.
    pub(super) fn circuit_open(&self, retry_in: Duration, tally: Tally) -> Error {
        let causes = tally.named_causes(|node| self.nodes.name(node).to_owned());
        let error = Error::CircuitOpen { retry_in, causes };
        error.with_limits(|name| self.reply_limit(name))
    }

    /// Returns the time-out that applies to a node at present: for a reply, or for a connect.
    pub(super) fn reply_limit(&self, name: &str) -> ReplyLimit {
        let mut nodes = self.nodes.nodes();
        let node = nodes.find(|(node, _)| *node == name);
        let connecting = node.and_then(|(_, connections)| {
            let each = connections
                .iter()
                .map(|connection| connection.report().connecting);
            each.collect::<Option<Vec<Duration>>>()?.into_iter().max()
        });
        match connecting {
            Some(connecting) => ReplyLimit::Node {
                node_timeout: self.settings.node_timeout,
                connecting,
            },
            None => ReplyLimit::Connect {
                connect_timeout: self.settings.connect_timeout,
            },
        }
    }

    /// Counts a guard whose `Drop` a panic cut short (S13).
    pub(crate) fn count_failed_drop(&self) {
        self.nodes.counters().record_failed_drop();
    }

    /// Returns the time `node_timeout` from now.
    pub(super) fn node_timeout_from_now(&self) -> Instant {
        self.node_timeout_from(clock::now())
    }

    /// Returns the time `node_timeout` after `start`.
    pub(super) fn node_timeout_from(&self, start: Instant) -> Instant {
        deadline::deadline(start, self.settings.node_timeout).unwrap_or(start)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries((0..self.nodes.total()).map(|node| self.nodes.name(node)))
            .finish()
    }
}
