//! All lanes together, as each of their threads knows them: which servers they are connected to, how often one came up, and what
//! the log has said of their nodes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::news::News;

/// Keeps two addresses of one server from counting twice, also when one of them comes up later: for each node the run
/// that its lanes which are up are connected to, and how many they are.
///
/// It also tells those who wait for nodes to come up, counts how often one did, so that nobody need look all the time, and has
/// what the log has said of each.
#[derive(Debug)]
pub(crate) struct Census {
    runs: Mutex<Vec<Option<(String, usize)>>>,
    changed: Condvar,
    risen: AtomicU64,
    news: Vec<News>,
}

impl Census {
    pub(crate) fn of(nodes: usize) -> Census {
        Census {
            runs: Mutex::new(vec![None; nodes]),
            changed: Condvar::new(),
            risen: AtomicU64::new(0),
            news: (0..nodes).map(|_| News::default()).collect(),
        }
    }

    /// What the log has said of a node.
    pub(crate) fn news(&self, node: usize) -> &News {
        &self.news[node]
    }

    /// A lane has come up, or answers again with what was overdue.
    pub(crate) fn rise(&self) {
        self.risen.fetch_add(1, Ordering::Release);
        self.announce();
    }

    /// How often a lane has come up. What is up by then was not before, if this has changed.
    pub(crate) fn risen(&self) -> u64 {
        self.risen.load(Ordering::Acquire)
    }

    /// Lets those look who wait.
    pub(crate) fn announce(&self) {
        // Who has seen it down, and is about to wait, has the lock.
        drop(self.runs.lock());
        self.changed.notify_all();
    }

    /// Waits until `holds`, which lanes that come up may bring about, until `end`. `false` if it does not.
    pub(crate) fn wait_until(&self, end: Option<Instant>, holds: impl Fn() -> bool) -> bool {
        let mut runs = self.runs.lock();
        while !holds() {
            match end {
                None => self.changed.wait(&mut runs),
                Some(end) if self.changed.wait_until(&mut runs, end).timed_out() => return holds(),
                Some(_) => {}
            }
        }
        true
    }

    /// `node` runs as `run_id`. Answers the other node that does so already.
    pub(crate) fn enter(&self, node: usize, run_id: &str) -> Option<usize> {
        let mut runs = self.runs.lock();
        let same = |run: &Option<(String, usize)>| run.as_ref().is_some_and(|run| run.0 == run_id);
        let twin = runs.iter().position(same).filter(|twin| *twin != node);
        if twin.is_none() {
            match &mut runs[node] {
                Some((run, lanes)) if run == run_id => *lanes += 1,
                run => *run = Some((run_id.to_owned(), 1)),
            }
        }
        twin
    }

    /// A lane of `node` is not connected to that run any more. The address may lead elsewhere by the time it is again.
    pub(crate) fn leave(&self, node: usize, run_id: &str) {
        let mut runs = self.runs.lock();
        match &mut runs[node] {
            Some((run, lanes)) if run == run_id && *lanes > 1 => *lanes -= 1,
            Some((run, _)) if run == run_id => runs[node] = None,
            _ => {}
        }
    }
}
