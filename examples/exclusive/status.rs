//! `status` and `list`: show the state of one lock and of all locks.

use super::cli::Common;
use super::exit_error::{Kind, NO_LOCK, Refusal};
use super::lock_row::Lock;
use super::output::{Voice, shown};
use super::scan::{Absent, Scanner};
use super::table::table;
use redguard::{Error, NodeHealth, NodeState, RedisLocker};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// Number of locks that are read in parallel, so that their requests are pipelined.
const AT_A_TIME: usize = 16;

/// Columns of a lock.
pub(crate) const COLUMNS: [&str; 4] = ["KEY", "HOLDER", "NODES", "ENDS IN"];

pub(crate) fn status(
    locker: &RedisLocker,
    key: &str,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    let lock = Lock::read(locker, key).map_err(|error| Refusal::of_lock(key, error))?;
    warn_of_absent(locker, voice);
    let text = format!("{}: {}", shown(key), lock.describe());
    voice.tell(&text, &lock.object())?;
    Ok(if lock.is_held() { 0 } else { NO_LOCK })
}

/// Reports the nodes that did not contribute to the result.
pub(crate) fn warn_of_absent(locker: &RedisLocker, voice: &mut Voice<'_>) {
    for node in &locker.nodes().health().nodes {
        if let Some(cause) = why_absent(node) {
            voice.warn_of_node(&node.node, &cause);
        }
    }
}

/// Returns why a node is not asked, if it is not.
fn why_absent(node: &NodeHealth) -> Option<String> {
    let cause = node.cause.as_ref()?;
    (node.state == NodeState::Suspect).then(|| cause.to_string())
}

pub(crate) fn list(survey: &mut Survey, voice: &mut Voice<'_>) -> Result<u8, Refusal> {
    let Seen { locks, absent } = survey.list(&|| true)?;
    for Absent { node, cause } in &absent {
        voice.warn_of_node(node, cause);
    }
    if voice.json {
        for lock in &locks {
            voice.tell("", &lock.object())?;
        }
    } else {
        let rows: Vec<_> = locks.iter().map(columns).collect();
        let mut text = table(COLUMNS, &rows).join("\n");
        text.push('\n');
        voice.write(&text)?;
    }
    Ok(0)
}

/// Returns a lock's row in a table.
pub(crate) fn columns(lock: &Lock) -> [String; 4] {
    let partial = if lock.is_held() { "" } else { " (no quorum)" };
    [
        shown(&lock.key),
        lock.holder(),
        format!("{}/{}{partial}", lock.nodes, lock.total),
        lock.ends_in(),
    ]
}

/// Lists all locks whose names match a pattern, repeatedly.
pub(crate) struct Survey {
    locker: RedisLocker,
    scanner: Scanner,
    /// The listed names, for people.
    pub(crate) what: String,
}

/// Result of a list.
pub(crate) struct Seen {
    /// Sorted by name.
    pub(crate) locks: Vec<Lock>,
    pub(crate) absent: Vec<Absent>,
}

impl Survey {
    pub(crate) fn new(common: &Common, pattern: &str) -> Result<Survey, Refusal> {
        let locker = common.connect()?;
        let addresses = common.addresses()?;
        let health = locker.nodes().health();
        let names = health.nodes.iter().map(|node| node.node.clone());
        let scanner = Scanner::new(&addresses, names, *common.timeout, &common.prefix, pattern);
        let what = format!("{}{pattern} on {} nodes", common.prefix, addresses.len());
        Ok(Survey {
            locker,
            scanner,
            what,
        })
    }

    /// Finds the names and reads the holder of each. Returns a partial result when `keep_running`
    /// returns false.
    pub(crate) fn list(
        &mut self,
        keep_running: &(dyn Fn() -> bool + Sync),
    ) -> Result<Seen, Refusal> {
        let health = self.locker.nodes().health();
        let total = health.nodes.len();
        let absent: Vec<_> = health.nodes.iter().map(why_absent).collect();
        let found = self.scanner.scan(&absent, keep_running);
        // Enough nodes that the others are no quorum: each held lock is on one of these.
        let (listed, needed) = (total - found.absent.len(), total - total / 2);
        if listed < needed {
            let causes: Vec<_> = found.absent.iter().map(Absent::to_string).collect();
            let line = format!(
                "{listed} of {total} nodes could be listed, {needed} are needed ({})",
                causes.join("; ")
            );
            return Err(Refusal::new(Kind::Unavailable, line));
        }
        let names: Vec<String> = found.names.into_iter().collect();
        Ok(Seen {
            locks: self.ask(&names, total, keep_running)?,
            absent: found.absent,
        })
    }

    fn ask(
        &self,
        names: &[String],
        total: usize,
        keep_running: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Lock>, Refusal> {
        let next = AtomicUsize::new(0);
        let ask = || -> Result<Vec<Lock>, Refusal> {
            let mut locks = Vec::new();
            while let Some(name) = names
                .get(next.fetch_add(1, Relaxed))
                .filter(|_| keep_running())
            {
                match self.locker.holder(name) {
                    Ok(Some(holder)) if !holder.foreign => {
                        locks.push(Lock::told(name, Some(holder), total));
                    }
                    // Released since then, a foreign value, or no name of a lock, such as the keys
                    // of a read-write lock.
                    Ok(_) | Err(Error::InvalidKey { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(locks)
        };
        let mut locks = Vec::new();
        thread::scope(|scope| {
            let threads = 0..AT_A_TIME.min(names.len());
            let threads: Vec<_> = threads.map(|_| scope.spawn(ask)).collect();
            for thread in threads {
                match thread.join() {
                    Ok(told) => locks.extend(told?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok::<(), Refusal>(())
        })?;
        locks.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(locks)
    }
}
