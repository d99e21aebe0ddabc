//! What an attempt, an extension, a downgrade and a release are.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::background::loss_handler;
use crate::background::loss_handler::LossHandler;
use crate::background::release_listener::listener::ReleaseListener;
use crate::background::renewal::service::RenewalService;
use crate::config::settings::Settings;
use crate::engine::breaker::SharedBreaker;
use crate::error::{AnswerLimit, Error, LossReason, Operation};
use crate::local::lock_table::LockTable;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::Tally;
use crate::protocol::retry::RetryPolicy;
use crate::sync::threads;
use crate::telemetry::health::{BreakerState, Health, NodeHealth};
use crate::telemetry::stats::Stats;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::node::traits::Connector;
use crate::transport::node_group::NodeGroup;

/// The interval in which a writer that waits says so again, where the policy's `max_delay` is not shorter. It is also how
/// long a turn of the readers takes; a writer's place at the gate has three times as long.
const MAX_REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// An interval below this would be over before a slow round is.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(10);

/// The nodes, the gate before them, and what they have in common. Guards and handles share it.
pub(crate) struct Engine {
    pub(crate) settings: Settings,
    pub(crate) lock_table: Arc<LockTable>,
    pub(crate) nodes: Arc<NodeGroup>,
    /// The policy for read-write locks: with pauses so short that no place at the gate lapses and no turn is missed.
    pub(crate) rw_retry: RetryPolicy,
    pub(crate) refresh_interval: Duration,
    pub(crate) loss_handler: LossHandler,
    pub(crate) renewal: RenewalService,
    pub(crate) listener: ReleaseListener,
    pub(crate) circuit: SharedBreaker,
}

impl Engine {
    /// # Errors
    /// `System` when there are no random bytes for a name.
    pub(crate) fn new(
        settings: Settings,
        nodes: NodeGroup,
        connectors: Arc<[Arc<dyn Connector>]>,
    ) -> Result<Engine, Error> {
        let policy = &settings.retry;
        let refresh = policy
            .max_delay
            .clamp(MIN_REFRESH_INTERVAL, MAX_REFRESH_INTERVAL);
        let rw_retry = RetryPolicy {
            initial_delay: policy.initial_delay.min(refresh / 2),
            max_delay: policy.max_delay.min(refresh / 2),
            ..policy.clone()
        };
        let (gate, nodes) = (Arc::new(LockTable::new()), Arc::new(nodes));
        let losses = LossHandler::new(&gate, &nodes);
        let lost = losses.clone();
        let lost = Arc::new(move |lease: &Arc<Lease>, why: &str| lost.handle_loss(lease, why));
        Ok(Engine {
            rw_retry,
            refresh_interval: refresh,
            circuit: SharedBreaker::new(&settings, &nodes),
            listener: ReleaseListener::new(&settings.key_prefix, &nodes, connectors)?,
            renewal: RenewalService::new(&nodes, settings.node_timeout, lost),
            loss_handler: losses,
            settings,
            lock_table: gate,
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

    /// How many messages and pending releases wait for a node.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self, node: usize) -> u64 {
        let lanes = self.nodes.nodes().nth(node).map(|(_, lanes)| lanes);
        let lanes = lanes.unwrap_or_default().iter();
        lanes.map(|lane| lane.waiting()).sum()
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        self.nodes.counters().drop_failures()
    }

    /// Whether this process is a child that was forked off the one with the lanes' threads.
    pub(crate) fn is_forked(&self) -> bool {
        self.lock_table.is_forked()
    }

    /// No quorum could be connected to since `start`: locks are held in this process until one can (rule S9).
    pub(crate) fn start_degraded(&self, start: Instant, tally: &Tally) {
        self.circuit.open(start, tally);
    }

    pub(crate) fn stats(&self) -> Stats {
        self.nodes.stats()
    }

    /// How the nodes are, and whether they are asked.
    pub(crate) fn health(&self) -> Health {
        let nodes = self.nodes.nodes();
        Health {
            breaker: BreakerState::of(self.circuit.phase()),
            nodes: nodes
                .filter_map(|(node, lanes)| NodeHealth::of(node, lanes))
                .collect(),
        }
    }

    /// Waits until a quorum of nodes is connected, until `end`.
    pub(crate) fn wait_ready(&self, end: Option<Instant>) -> Result<(), Error> {
        if self.is_forked() || self.lock_table.is_closed() {
            return Err(Error::Closed);
        }
        match (
            self.nodes.wait_for_quorum(end, &self.lock_table),
            self.lock_table.is_closed(),
        ) {
            (_, true) => Err(Error::Closed),
            (true, false) => Ok(()),
            (false, false) => {
                Err(self.insufficient_quorum(Operation::Connect, self.nodes.connection_tally(&[])))
            }
        }
    }

    /// The time that the nodes have for a round that begins at `start`.
    pub(crate) fn node_budget(&self, start: Instant) -> Deadline {
        Deadline::new(
            DeadlineCause::NodeTimeout,
            deadline::deadline(start, self.settings.node_timeout),
        )
    }

    /// What is owed for a lost lease; a monitor of one has a clone.
    pub(crate) fn losses(&self) -> &LossHandler {
        &self.loss_handler
    }

    /// A lease is not renewed any more, and ends at its expiry.
    pub(crate) fn stop_renewal(&self, lease: &Lease) {
        if !self.is_forked() {
            self.renewal.unregister(lease);
        }
    }

    /// The error of an acquire that does not wait, while the breaker is open.
    pub(crate) fn circuit_open(&self, retry_in: Duration, tally: Tally) -> Error {
        let causes = tally.named_causes(|node| self.nodes.name(node).to_owned());
        let error = Error::CircuitOpen { retry_in, causes };
        error.with_limits(|name| self.answer_limit(name))
    }

    /// How long the node of this name has to answer at present.
    pub(crate) fn answer_limit(&self, name: &str) -> AnswerLimit {
        let mut nodes = self.nodes.nodes();
        let lanes = nodes.find(|(node, _)| *node == name);
        let connecting = lanes.and_then(|(_, lanes)| {
            let each = lanes.iter().map(|lane| lane.report().connecting);
            each.collect::<Option<Vec<Duration>>>()?.into_iter().max()
        });
        match connecting {
            Some(connecting) => AnswerLimit::Node {
                node_timeout: self.settings.node_timeout,
                connecting,
            },
            None => AnswerLimit::Connect {
                connect_timeout: self.settings.connect_timeout,
            },
        }
    }

    /// A guard's `Drop` was cut short by a panic.
    pub(crate) fn count_failed_drop(&self) {
        self.nodes.counters().record_failed_drop();
    }

    /// Closes the gate, waits for live guards, drains the lanes and ends their threads; at most for `grace`, and
    /// `node_timeout` for the draining. `false` if a guard was still alive or a thread did not end in time.
    pub(crate) fn shutdown(&self, grace: Duration) -> bool {
        if self.is_forked() {
            return false;
        }
        let end = deadline::deadline(clock::now(), grace);
        self.lock_table.close();
        self.nodes.announce();
        let settle = |lease: &Arc<Lease>| {
            self.loss_handler
                .handle_loss(lease, loss_handler::EXPIRED_MSG)
        };
        let alive = self.lock_table.wait_idle(end, settle);
        for lease in &alive {
            if lease.mark_lost(LossReason::ShutDown) {
                // Nothing in use is ever deleted: its holder may not have looked yet.
                self.nodes.counters().lost(lease.key());
                self.loss_handler.notifier().notify_lost(lease);
                warn!("{}: lock lost: shut down, left to its TTL", lease.keys());
            }
        }
        // Who is still asking undoes it yet: the lanes must be there for that.
        let settled = self
            .lock_table
            .wait_no_pending(self.node_timeout_from_now());
        self.stop_threads() && settled && alive.is_empty()
    }

    /// A `node_timeout` from now.
    pub(crate) fn node_timeout_from_now(&self) -> Instant {
        let now = clock::now();
        deadline::deadline(now, self.settings.node_timeout).unwrap_or(now)
    }

    /// Ends the threads when they have served what is queued, within `node_timeout`.
    fn stop_threads(&self) -> bool {
        let end = self.node_timeout_from_now();
        // All are told before one of them is waited for; the lanes last, since the listener is told through them.
        self.renewal.stop();
        self.listener.stop();
        let lanes = self.nodes.shutdown(end);
        let helpers = self.renewal.await_end(end) & self.listener.join_until(end);
        if !lanes {
            debug!("some lanes are busy connecting and end by themselves");
        }
        let notifier = self.loss_handler.notifier().stop(end);
        if !notifier {
            debug!("a callback for a lost lock is still running");
        }
        helpers && lanes && notifier
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_forked() {
            // The lanes' channels may have been in use by threads that do not exist here: never touch them.
            std::mem::forget(Arc::clone(&self.nodes));
        } else {
            // As in the `Drop` of a guard, which may hold the last handle.
            threads::catch("drop of the nodes", || self.stop_threads());
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries((0..self.nodes.total()).map(|node| self.nodes.name(node)))
            .finish()
    }
}
