//! Ends the engine: by `Nodes::shutdown`, or with the last handle.
//!
//! - Each wait has a bound. What has not ended by then is named in one `warn` line.
//! - No log line can panic the caller.
//! - Nothing in use is deleted: the keys of guards that are left end with their TTLs.
//!
//! Tests: `src/tests/engine/shutdown.rs`.

use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::background::loss_notifier;
use crate::background::release_listener::shared as listener;
use crate::background::renewal::queue as renewal;
use crate::engine::core::Engine;
use crate::error::loss_reason::LossReason;
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::sync::threads;
use crate::time::{clock, deadline};

/// The time in which the notifier may end if the other threads have used up all of theirs. It is
/// stopped last, because the renewal thread may still report a loss.
const NOTIFIER_GRACE: Duration = Duration::from_millis(20);

/// The log line names at most this many keys of pending acquires.
const MAX_NAMED_KEYS: usize = 8;

impl Engine {
    /// Shuts down: closes the lock table, waits for guards, and ends the threads.
    ///
    /// Blocks for at most `grace` for the guards, and then for at most twice `node_timeout` (and
    /// [`NOTIFIER_GRACE`]) for pending acquires and for the threads. Returns `false` if a guard was
    /// left or a thread did not end in time, and at once in a forked child.
    pub(crate) fn shutdown(&self, grace: Duration) -> bool {
        if self.is_forked() {
            return false;
        }
        let end = deadline::deadline(clock::now(), grace);
        self.lock_table.close();
        self.nodes.announce();
        let on_lost = |lease: &Arc<Lease>| self.handle_expiry(lease);
        let held = self.lock_table.wait_idle(end, on_lost);
        for lease in &held {
            if lease.mark_lost(LossReason::ShutDown) {
                // Not released, because the holder may still rely on the lock.
                self.nodes.counters().lost(lease.key().name());
                self.loss_handler.notifier().recheck(lease);
                let keys = lease.keys();
                threads::log(|| {
                    warn!("{keys}: lock lost: shut down, left to its TTL");
                });
            }
        }
        // Pending acquires still send their undo, for which the workers must exist.
        let end = self.node_timeout_from_now();
        let pending = self.lock_table.wait_no_pending(end);
        self.end_threads(&pending) && pending.is_empty() && held.is_empty()
    }

    /// Stops all threads, and logs what has not ended in time. Returns whether all threads have.
    fn end_threads(&self, pending: &[Key]) -> bool {
        let threads = self.stop_threads();
        if !threads.is_empty() || !pending.is_empty() {
            threads::log(|| {
                let nodes = self.nodes.names().join(", ");
                let left = describe_left(&threads, pending);
                warn!("{nodes}: not ended at shutdown: {left}");
            });
        }
        threads.is_empty()
    }

    /// Stops all threads once they have served their queues. Blocks for at most `node_timeout` and
    /// [`NOTIFIER_GRACE`].
    ///
    /// Returns the names of the threads that did not end in time.
    fn stop_threads(&self) -> Vec<String> {
        let end = self.node_timeout_from_now();
        // All threads are stopped before one is joined. The workers stop last, because they send
        // the message that wakes the listener.
        self.renewal.stop();
        self.listener.stop();
        let mut left = self.nodes.shutdown(end);
        if !self.renewal.join_until(end) {
            left.push(renewal::NAME.to_owned());
        }
        if !self.listener.join_until(end) {
            left.push(listener::NAME.to_owned());
        }
        let end = end.max(clock::now() + NOTIFIER_GRACE);
        if !self.loss_handler.notifier().stop(end) {
            left.push(format!("{} (a callback runs)", loss_notifier::NAME));
        }
        left
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_forked() {
            // Leaked, because dropping it could block on channels that the missing threads locked.
            std::mem::forget(Arc::clone(&self.nodes));
        } else {
            // A panic is caught, because a guard's `Drop` may drop the last handle (S13).
            threads::catch("drop of the nodes", || self.end_threads(&[]));
        }
    }
}

/// As `thread redguard-0.1 (10.0.0.1:6379); acquires of 2 keys: "a", "b"`.
fn describe_left(threads: &[String], pending: &[Key]) -> String {
    let mut parts = Vec::new();
    if !threads.is_empty() {
        let plural = if threads.len() == 1 { "" } else { "s" };
        parts.push(format!("thread{plural} {}", threads.join(", ")));
    }
    if !pending.is_empty() {
        let named = pending.iter().take(MAX_NAMED_KEYS).map(Key::to_string);
        let named = named.collect::<Vec<_>>().join(", ");
        let count = pending.len();
        let plural = if count == 1 { "" } else { "s" };
        let more = if count > MAX_NAMED_KEYS { ", …" } else { "" };
        parts.push(format!("acquires of {count} key{plural}: {named}{more}"));
    }
    parts.join("; ")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::tests::engine::setup::exclusive_key;

    #[test]
    fn left_threads_and_acquires_are_named_up_to_a_limit() {
        let threads = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let keys = |count: usize| -> Vec<Key> {
            (0..count)
                .map(|n| exclusive_key(&format!("k{n}")))
                .collect()
        };
        let up_to_7 = r#""k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7""#;
        let eight = format!("acquires of 8 keys: {up_to_7}");
        let nine = format!("acquires of 9 keys: {up_to_7}, …");
        for (threads, pending, text) in [
            (threads(&["a"]), keys(0), "thread a"),
            (
                threads(&["a", "b"]),
                keys(1),
                r#"threads a, b; acquires of 1 key: "k0""#,
            ),
            (threads(&[]), keys(8), &*eight),
            (threads(&[]), keys(9), &*nine),
        ] {
            assert_eq!(describe_left(&threads, &pending), text);
        }
    }
}
