//! All lanes together, as each of their threads knows them: which servers they are connected to, how often one came up, and what
//! the log has said of their nodes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::transport::inbox::Inbox;
use crate::transport::warning_state::WarningState;

/// After two servers were seen at one address, so many connects in a row must lead to one of them before the node counts again. A
/// balancer that takes turns, or draws lots, hardly ever does so by chance.
const SAME_IN_A_ROW: u32 = 10;
/// So many earlier runs of a node are known.
const MAX_FORMER_RUNS: usize = 8;

/// Keeps two addresses of one server from counting twice, also when one of them comes up later: for each node the run
/// that its lanes which are up are connected to, and how many they are.
///
/// It likewise keeps two servers at one address from counting as one node: a connection that leads to another run makes those
/// before it outdated, and they are made again before they are used. After a restart all lead to the new run. If one leads to the
/// former run, that is alive: there are two.
///
/// It also tells those who wait for nodes to come up, counts how often one did, so that nobody need look all the time, and has
/// what the log has said of each.
#[derive(Debug)]
pub(crate) struct NodeRegistry {
    run_ids: Mutex<Vec<Runs>>,
    changed: Condvar,
    connect_epoch: AtomicU64,
    /// For each node how often a connection has led to another run than those that stood.
    epochs: Vec<AtomicU64>,
    /// Of each node, whether the last connect reached it. An established connection that breaks does not change it: the node may
    /// be there.
    reached: Vec<AtomicBool>,
    waiters: Arc<Waiters>,
    warnings: Vec<WarningState>,
}

/// The runs that connections to one node have led to.
#[derive(Debug, Default)]
struct Runs {
    /// The latest, and how many lanes are connected to it.
    current: Option<(String, usize)>,
    /// Those that lanes were connected to when a later one was found.
    former: VecDeque<String>,
    /// The run that the last connect led to, and how many more must, since two servers were seen.
    doubted: Option<(String, u32)>,
}

/// What a connection has led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// The node's server. The connection is outdated when the node's epoch is another one.
    Counted { epoch: u64 },
    /// The server of this other node.
    Twin(usize),
    /// One of several servers at the node's address.
    SeveralServers,
}

/// The callers that wait for nodes to come up, or for a verdict on whether they are.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    inboxes: Mutex<Vec<Arc<Inbox>>>,
}

/// The registration of one waiter, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    inbox: Arc<Inbox>,
}

impl Waiters {
    /// Registers an inbox. A change after this call wakes it, so its owner looks after this call and sleeps then.
    pub(crate) fn join(&self, inbox: &Arc<Inbox>) -> Waiter<'_> {
        self.inboxes.lock().push(Arc::clone(inbox));
        Waiter {
            waiters: self,
            inbox: Arc::clone(inbox),
        }
    }

    /// Wakes all waiters, so that they look again.
    pub(crate) fn wake(&self) {
        let inboxes = self.inboxes.lock().clone(); // unlocked before waking
        inboxes.iter().for_each(|inbox| inbox.wake());
    }

    /// Returns how many wait.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        self.inboxes.lock().len()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut inboxes = self.waiters.inboxes.lock();
        let own = |inbox: &Arc<Inbox>| Arc::ptr_eq(inbox, &self.inbox);
        if let Some(place) = inboxes.iter().position(own) {
            inboxes.swap_remove(place);
        }
    }
}

impl NodeRegistry {
    pub(crate) fn of(nodes: usize) -> NodeRegistry {
        NodeRegistry {
            run_ids: Mutex::new((0..nodes).map(|_| Runs::default()).collect()),
            epochs: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            changed: Condvar::new(),
            connect_epoch: AtomicU64::new(0),
            reached: (0..nodes).map(|_| AtomicBool::new(false)).collect(),
            waiters: Arc::default(),
            warnings: (0..nodes).map(|_| WarningState::default()).collect(),
        }
    }

    /// What the log has said of a node.
    pub(crate) fn warnings(&self, node: usize) -> &WarningState {
        &self.warnings[node]
    }

    /// A lane has come up, or answers again with what was overdue.
    pub(crate) fn record_connected(&self) {
        self.connect_epoch.fetch_add(1, Ordering::Release);
        self.notify_waiters();
    }

    /// Notes whether a fresh connect has reached a node, in time and with its data loaded.
    pub(crate) fn note_connect(&self, node: usize, reached: bool) {
        let before = self.reached[node].swap(reached, Ordering::AcqRel);
        if before && !reached {
            self.notify_waiters(); // a waiter may go local now
        }
    }

    /// Returns how many nodes the last connect to them has reached.
    pub(crate) fn reached(&self) -> usize {
        let reached = |node: &&AtomicBool| node.load(Ordering::Acquire);
        self.reached.iter().filter(reached).count()
    }

    /// How often a lane has come up. What is up by then was not before, if this has changed.
    pub(crate) fn connect_epoch(&self) -> u64 {
        self.connect_epoch.load(Ordering::Acquire)
    }

    /// Lets those look who wait.
    pub(crate) fn notify_waiters(&self) {
        // Who has seen it down, and is about to wait, has the lock.
        drop(self.run_ids.lock());
        self.changed.notify_all();
        self.waiters.wake();
    }

    /// The callers that wait for a change.
    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    /// Waits until `holds`, which lanes that come up may bring about, until `end`. `false` if it does not.
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

    /// A connection to `node` has led to `run_id`. Where sentinels or a cluster stand for the node its server may change, and
    /// change back.
    pub(crate) fn register_run(&self, node: usize, run_id: &str, is_one_server: bool) -> Entered {
        let mut runs = self.run_ids.lock();
        let same = |runs: &Runs| runs.current.as_ref().is_some_and(|run| run.0 == run_id);
        let twin = runs.iter().position(same).filter(|twin| *twin != node);
        if let Some(twin) = twin {
            return Entered::Twin(twin);
        }
        let epoch = &self.epochs[node];
        let it = &mut runs[node];
        if let Some((last, left)) = &mut it.doubted {
            *left = match last == run_id {
                true => *left - 1,
                false => SAME_IN_A_ROW,
            };
            run_id.clone_into(last);
            if *left > 0 {
                return Entered::SeveralServers;
            }
            *it = Runs::default();
        }
        if is_one_server && it.former.iter().any(|former| former == run_id) {
            it.current = None;
            it.doubted = Some((run_id.to_owned(), SAME_IN_A_ROW));
            epoch.fetch_add(1, Ordering::Release);
            return Entered::SeveralServers;
        }
        match &mut it.current {
            Some((run, lanes)) if run == run_id => *lanes += 1,
            current => {
                if let Some((former, _)) = current.replace((run_id.to_owned(), 1)) {
                    it.former.push_back(former);
                    if it.former.len() > MAX_FORMER_RUNS {
                        it.former.pop_front();
                    }
                    epoch.fetch_add(1, Ordering::Release);
                }
            }
        }
        Entered::Counted {
            epoch: epoch.load(Ordering::Acquire),
        }
    }

    /// Another server than the node's latest run is alive, too: no connection counts until one server is left.
    pub(crate) fn doubt(&self, node: usize) {
        let mut runs = self.run_ids.lock();
        let it = &mut runs[node];
        if it.doubted.is_none()
            && let Some((run, _)) = it.current.take()
        {
            it.doubted = Some((run, SAME_IN_A_ROW));
            self.epochs[node].fetch_add(1, Ordering::Release);
        }
    }

    /// Which of a node's connections are not outdated.
    pub(crate) fn epoch(&self, node: usize) -> u64 {
        self.epochs[node].load(Ordering::Acquire)
    }

    /// A lane of `node` is not connected to that run any more. The address may lead elsewhere by the time it is again.
    pub(crate) fn unregister_run(&self, node: usize, run_id: &str) {
        let mut runs = self.run_ids.lock();
        let current = &mut runs[node].current;
        match current {
            Some((run, lanes)) if run == run_id && *lanes > 1 => *lanes -= 1,
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

    #[test]
    fn server_that_restarts_again_and_again_is_one_server() {
        let census = NodeRegistry::of(1);
        let mut epoch = counted(census.register_run(0, "run 0", true));
        assert_eq!(counted(census.register_run(0, "run 0", true)), epoch);
        for run in 1..20 {
            let run_id = format!("run {run}");
            let next = counted(census.register_run(0, &run_id, true));
            assert!(
                next > epoch && census.epoch(0) == next,
                "the other lane is outdated"
            );
            census.unregister_run(0, &format!("run {}", run - 1));
            epoch = counted(census.register_run(0, &run_id, true));
            assert_eq!(epoch, next);
        }
    }

    #[test]
    fn two_servers_at_one_address_do_not_count_until_one_is_left() {
        let census = NodeRegistry::of(1);
        let first = counted(census.register_run(0, "a", true));
        let second = counted(census.register_run(0, "b", true));
        assert_ne!(first, second);
        let several = |run_id| {
            assert_eq!(
                census.register_run(0, run_id, true),
                Entered::SeveralServers
            )
        };
        several("a");
        assert_ne!(
            census.epoch(0),
            second,
            "what led to the other is outdated, too"
        );
        for _ in 0..50 {
            several("b");
            several("a");
        }
        (1..SAME_IN_A_ROW).for_each(|_| several("a"));
        assert_eq!(counted(census.register_run(0, "a", true)), census.epoch(0));
        // A run that has been left by all is no rival of a later one.
        census.unregister_run(0, "a");
        counted(census.register_run(0, "c", true));
        counted(census.register_run(0, "c", true));
    }

    #[test]
    fn server_that_is_alive_beside_a_later_one_makes_the_node_doubted() {
        let census = NodeRegistry::of(1);
        counted(census.register_run(0, "a", true));
        let later = counted(census.register_run(0, "b", true));
        census.doubt(0);
        assert_ne!(census.epoch(0), later);
        assert_eq!(census.register_run(0, "b", true), Entered::SeveralServers);
        census.doubt(0);
        assert_eq!(census.epoch(0), later + 1, "it is known");
    }

    #[test]
    fn node_whose_server_may_change_back_is_one_node() {
        let census = NodeRegistry::of(1);
        for run_id in ["a", "b", "a", "a", "b"] {
            counted(census.register_run(0, run_id, false));
        }
    }

    #[test]
    fn server_of_another_node_is_told() {
        let census = NodeRegistry::of(2);
        counted(census.register_run(0, "a", true));
        assert_eq!(census.register_run(1, "a", true), Entered::Twin(0));
        census.unregister_run(0, "a");
        counted(census.register_run(1, "a", true));
    }
}
