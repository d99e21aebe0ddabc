//! State shared by all workers: the server behind each node, a count of connects and of overdue
//! replies that arrived, the callers that wait for nodes, and the warnings already logged.
//!
//! It detects two addresses of one server, and several servers behind one address: either would
//! break the quorum (S1). It knows run ids only; it opens no connection and closes none.
//!
//! | state of a node | leaves by |
//! |---|---|
//! | no run | a connect to no former run → current run |
//! | current run | a connect to a new run → current run, with the next epoch |
//! | no run, current run | a connect to a former run (1) → doubted |
//! | current run | an outdated connect (1, 2) → no run; at the third → doubted |
//! | current run | its last connection ends → no run |
//! | current run | [`doubt`](NodeRegistry::doubt) → doubted |
//! | doubted | [`SAME_IN_A_ROW`] further connects to one run, none to another → current run |
//!
//! 1. With `is_one_server` only; else a connect to any other run is one to a new run.
//! 2. A connect that began before the current run was found, to another run.
//!
//! Tests: in this file; in `src/tests/engine/`: `outage.rs`, `quorum.rs`, `idle.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::primitives::{Condvar, Mutex};
use crate::transport::waiters::Waiters;
use crate::transport::warning_state::WarningState;

/// The number of further connects to the last server, without another between, before the node
/// counts again. A balancer hardly ever does so by chance.
const SAME_IN_A_ROW: u32 = 10;
/// The number of [`Outdated`](Entered::Outdated) connects, without two counted for one run between,
/// that show several servers.
const MAX_OVERTAKEN: u32 = 3;
/// The largest number of former run ids that are kept for a node.
const MAX_FORMER_RUNS: usize = 8;

/// The state shared by all workers.
///
/// A server that is connected under two addresses counts once, for the node that registered its run
/// first. A connection to a new run raises the node's epoch, which replaces the older connections:
/// their workers reconnect before they use them again. After a restart all of them lead to the new
/// run. If one still leads to the former run, two servers share the address.
#[derive(Debug)]
pub(crate) struct NodeRegistry {
    run_ids: Mutex<Vec<Runs>>,
    changed: Condvar,
    connect_count: AtomicU64,
    /// For each node, how often its connections were replaced.
    epochs: Vec<AtomicU64>,
    /// For each node, whether the last connect reached it. A connection that breaks does not change
    /// this, because the node may still be reachable.
    reached: Vec<AtomicBool>,
    waiters: Arc<Waiters>,
    warnings: Vec<WarningState>,
}

/// The run ids of the servers behind one node.
#[derive(Debug, Default)]
struct Runs {
    /// The current run id, and the number of connections to it.
    current: Option<(String, usize)>,
    /// The runs that another run has replaced, oldest first.
    former: VecDeque<String>,
    /// After several servers were seen: the run id of the last connect, and how many more connects
    /// must lead to it.
    doubted: Option<(String, u32)>,
    /// How often the current run was set.
    found: u64,
    /// How many connects were [`Outdated`](Entered::Outdated) since two led to one run.
    overtaken: u32,
}

impl Runs {
    /// Counts a connection to `run_id`, which becomes the current run if it is not.
    fn count(&mut self, run_id: &str, epoch: &AtomicU64) {
        match &mut self.current {
            Some((run, connections)) if run == run_id => {
                *connections += 1;
                self.overtaken = 0;
            }
            current => {
                self.found += 1;
                if let Some((former, _)) = current.replace((run_id.to_owned(), 1)) {
                    self.former.push_back(former);
                    if self.former.len() > MAX_FORMER_RUNS {
                        self.former.pop_front();
                    }
                    epoch.fetch_add(1, Ordering::Release);
                }
            }
        }
    }

    /// Lets no connection count until [`SAME_IN_A_ROW`] further ones lead to one server; the last
    /// one has led to `run_id`.
    fn doubt_at(&mut self, run_id: &str, epoch: &AtomicU64) -> Entered {
        self.current = None;
        self.doubted = Some((run_id.to_owned(), SAME_IN_A_ROW));
        epoch.fetch_add(1, Ordering::Release);
        Entered::SeveralServers
    }
}

/// The server that a connection leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// The node's server. The connection is replaced once the node's epoch differs from this one.
    Counted { epoch: u64 },
    /// The server of the node with this index.
    Twin(usize),
    /// One of several servers at the node's address.
    SeveralServers,
    /// Another run than the current one, which was found after this connect began. Either may be
    /// the earlier one, so all connections are replaced.
    Outdated,
}

impl NodeRegistry {
    pub(crate) fn of(nodes: usize) -> NodeRegistry {
        NodeRegistry {
            run_ids: Mutex::new((0..nodes).map(|_| Runs::default()).collect()),
            epochs: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            changed: Condvar::new(),
            connect_count: AtomicU64::new(0),
            reached: (0..nodes).map(|_| AtomicBool::new(false)).collect(),
            waiters: Arc::default(),
            warnings: (0..nodes).map(|_| WarningState::default()).collect(),
        }
    }

    /// Returns which warnings were logged for a node.
    pub(super) fn warnings(&self, node: usize) -> &WarningState {
        &self.warnings[node]
    }

    /// Records that a connection has come up, or that an overdue reply has arrived.
    pub(crate) fn record_connected(&self) {
        self.connect_count.fetch_add(1, Ordering::Release);
        self.notify_waiters();
    }

    /// Records whether a connect has reached a node, in time and with its data loaded.
    pub(super) fn note_connect(&self, node: usize, reached: bool) {
        let before = self.reached[node].swap(reached, Ordering::AcqRel);
        if before && !reached {
            self.notify_waiters(); // a waiter may go local now
        }
    }

    /// Returns the number of nodes that the last connect to them has reached.
    pub(crate) fn reached(&self) -> usize {
        let reached = |node: &&AtomicBool| node.load(Ordering::Acquire);
        self.reached.iter().filter(reached).count()
    }

    /// Returns how often a connection has come up or an overdue reply has arrived.
    pub(crate) fn connect_count(&self) -> u64 {
        self.connect_count.load(Ordering::Acquire)
    }

    /// Wakes all callers that wait for a change.
    pub(crate) fn notify_waiters(&self) {
        // A thread in `wait_until` holds this lock from its check until it waits, so it sees the
        // change or the notification.
        drop(self.run_ids.lock());
        self.changed.notify_all();
        self.waiters.wake();
    }

    /// Returns the callers that wait for a change.
    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    /// Blocks until `holds` is true, at most until `end`. Checks it after each change. Returns its
    /// last result.
    pub(crate) fn wait_until(&self, end: Option<Instant>, holds: impl Fn() -> bool) -> bool {
        let mut runs = self.run_ids.lock();
        while !holds() {
            match end {
                None => self.changed.wait(&mut runs),
                Some(end) if self.changed.wait_until(&mut runs, end).timed_out() => return holds(),
                Some(_) => {}
            }
        }
        true
    }

    /// Registers a connection of `node` to the server with `run_id`.
    ///
    /// Without `is_one_server` (sentinels, cluster) the node's server may change, and change back.
    /// `found` is [`found_runs`](NodeRegistry::found_runs) from before the connect: the reply of a
    /// run that has ended may arrive after that of its successor.
    pub(crate) fn register_run(
        &self,
        node: usize,
        run_id: &str,
        is_one_server: bool,
        found: u64,
    ) -> Entered {
        let mut runs = self.run_ids.lock();
        let same = |runs: &Runs| runs.current.as_ref().is_some_and(|run| run.0 == run_id);
        let twin = runs.iter().position(same).filter(|twin| *twin != node);
        if let Some(twin) = twin {
            return Entered::Twin(twin);
        }
        let epoch = &self.epochs[node];
        let own = &mut runs[node];
        let is_other = own.current.as_ref().is_some_and(|run| run.0 != run_id);
        if is_one_server && is_other && own.found != found && own.doubted.is_none() {
            own.overtaken += 1;
            if own.overtaken >= MAX_OVERTAKEN {
                return own.doubt_at(run_id, epoch);
            }
            // Which run is the present one, new connections tell.
            own.current = None;
            epoch.fetch_add(1, Ordering::Release);
            return Entered::Outdated;
        }
        if let Some((last, left)) = &mut own.doubted {
            *left = match last == run_id {
                true => *left - 1,
                false => SAME_IN_A_ROW,
            };
            run_id.clone_into(last);
            if *left > 0 {
                return Entered::SeveralServers;
            }
            *own = Runs {
                found: own.found,
                ..Runs::default()
            };
        }
        if is_one_server && own.former.iter().any(|former| former == run_id) {
            return own.doubt_at(run_id, epoch);
        }
        own.count(run_id, epoch);
        Entered::Counted {
            epoch: epoch.load(Ordering::Acquire),
        }
    }

    /// Returns how often a connect has found a new run of a node.
    pub(super) fn found_runs(&self, node: usize) -> u64 {
        self.run_ids.lock()[node].found
    }

    /// Records that a server beside the node's current run is alive. No connection counts until one
    /// server is left.
    pub(crate) fn doubt(&self, node: usize) {
        let mut runs = self.run_ids.lock();
        let own = &mut runs[node];
        if own.doubted.is_none()
            && let Some((run, _)) = own.current.take()
        {
            own.doubted = Some((run, SAME_IN_A_ROW));
            self.epochs[node].fetch_add(1, Ordering::Release);
        }
    }

    /// Returns the node's epoch. Connections of an older epoch are replaced.
    pub(crate) fn epoch(&self, node: usize) -> u64 {
        self.epochs[node].load(Ordering::Acquire)
    }

    /// Records that a connection of `node` to `run_id` has ended. The next one may lead elsewhere.
    pub(super) fn unregister_run(&self, node: usize, run_id: &str) {
        let mut runs = self.run_ids.lock();
        let current = &mut runs[node].current;
        match current {
            Some((run, connections)) if run == run_id && *connections > 1 => *connections -= 1,
            Some((run, _)) if run == run_id => *current = None,
            _ => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn counted(entered: Entered) -> u64 {
        match entered {
            Entered::Counted { epoch } => epoch,
            other => panic!("{other:?}"),
        }
    }

    /// Registers a connection that nothing has overtaken.
    fn register(
        registry: &NodeRegistry,
        node: usize,
        run_id: &str,
        is_one_server: bool,
    ) -> Entered {
        registry.register_run(node, run_id, is_one_server, registry.found_runs(node))
    }

    #[test]
    fn reply_of_a_run_that_its_successor_has_overtaken_is_no_second_server() {
        for is_first in [true, false] {
            let registry = NodeRegistry::of(1);
            if !is_first {
                counted(register(&registry, 0, "before", true));
            }
            let found = registry.found_runs(0);
            let epoch = counted(register(&registry, 0, "after", true));
            let late = registry.register_run(0, "before", true, found);
            assert_eq!(late, Entered::Outdated);
            // Both are replaced, and the node is not doubted.
            assert_ne!(registry.epoch(0), epoch);
            let epoch = counted(register(&registry, 0, "after", true));
            // Two connects at once may lead to the new run.
            let same = registry.register_run(0, "after", true, found);
            assert_eq!(counted(same), epoch);
            assert_ne!(counted(register(&registry, 0, "later", true)), epoch);
        }
    }

    #[test]
    fn restarts_that_overtake_a_connect_now_and_then_are_those_of_one_server() {
        let registry = NodeRegistry::of(1);
        for run in 0..2 * MAX_OVERTAKEN {
            let [before, after] = [run, run + 1].map(|run| format!("run {run}"));
            let found = registry.found_runs(0);
            counted(register(&registry, 0, &after, true));
            let late = registry.register_run(0, &before, true, found);
            assert_eq!(late, Entered::Outdated);
            for _ in 0..2 {
                counted(register(&registry, 0, &after, true));
            }
        }
    }

    #[test]
    fn two_servers_that_overtake_each_other_are_several_servers() {
        let registry = NodeRegistry::of(1);
        let entered = [(); MAX_OVERTAKEN as usize].map(|()| {
            let found = registry.found_runs(0);
            counted(register(&registry, 0, "one", true));
            registry.register_run(0, "other", true, found)
        });
        use Entered::{Outdated, SeveralServers};
        assert_eq!(entered, [Outdated, Outdated, SeveralServers]);
        let next = register(&registry, 0, "one", true);
        assert_eq!(next, SeveralServers);
    }

    #[test]
    fn server_that_restarts_often_is_one_server() {
        let registry = NodeRegistry::of(1);
        let mut epoch = counted(register(&registry, 0, "run 0", true));
        assert_eq!(counted(register(&registry, 0, "run 0", true)), epoch);
        for run in 1..20 {
            let run_id = format!("run {run}");
            let next = counted(register(&registry, 0, &run_id, true));
            assert!(
                next > epoch && registry.epoch(0) == next,
                "the other connection is replaced"
            );
            registry.unregister_run(0, &format!("run {}", run - 1));
            epoch = counted(register(&registry, 0, &run_id, true));
            assert_eq!(epoch, next);
        }
    }

    #[test]
    fn two_servers_at_one_address_do_not_count_until_one_is_left() {
        let registry = NodeRegistry::of(1);
        let first = counted(register(&registry, 0, "a", true));
        let second = counted(register(&registry, 0, "b", true));
        assert_ne!(first, second);
        let several = |run_id| {
            assert_eq!(
                register(&registry, 0, run_id, true),
                Entered::SeveralServers
            )
        };
        several("a");
        assert_ne!(
            registry.epoch(0),
            second,
            "connections to the other server are replaced, too"
        );
        for _ in 0..50 {
            several("b");
            several("a");
        }
        (1..SAME_IN_A_ROW).for_each(|_| several("a"));
        assert_eq!(
            counted(register(&registry, 0, "a", true)),
            registry.epoch(0)
        );
        // A run without connections does not make the next one doubted.
        registry.unregister_run(0, "a");
        counted(register(&registry, 0, "c", true));
        counted(register(&registry, 0, "c", true));
    }

    #[test]
    fn server_alive_beside_a_later_one_makes_the_node_doubted() {
        let registry = NodeRegistry::of(1);
        counted(register(&registry, 0, "a", true));
        let later = counted(register(&registry, 0, "b", true));
        registry.doubt(0);
        assert_ne!(registry.epoch(0), later);
        assert_eq!(register(&registry, 0, "b", true), Entered::SeveralServers);
        registry.doubt(0);
        assert_eq!(registry.epoch(0), later + 1, "it is doubted already");
    }

    #[test]
    fn node_whose_server_changes_back_is_one_node() {
        let registry = NodeRegistry::of(1);
        for run_id in ["a", "b", "a", "a", "b"] {
            counted(register(&registry, 0, run_id, false));
        }
    }

    #[test]
    fn server_of_another_node_is_a_twin() {
        let registry = NodeRegistry::of(2);
        counted(register(&registry, 0, "a", true));
        assert_eq!(register(&registry, 1, "a", true), Entered::Twin(0));
        registry.unregister_run(0, "a");
        counted(register(&registry, 1, "a", true));
    }
}
