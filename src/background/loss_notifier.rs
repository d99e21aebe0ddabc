//! The loss notifier: one thread that runs the `on_lost` callbacks (S11).
//!
//! A callback runs once, when its lease is lost; never for a lease that was released. The thread
//! wakes at the expiry of each watched lease, so a loss is reported even if no thread checks or
//! renews the lease. A slow callback delays only other callbacks: the thread does no other work.
//!
//! | lease of a callback     | in the timer queue, due at | ends by                              |
//! |-------------------------|----------------------------|--------------------------------------|
//! | held                    | its expiry                 | due: extended, or lost and called    |
//! | lost, found by another  | at once (`notify_lost`)    | due: called                          |
//! | released                | no (`forget`)              | the callback is dropped              |
//! | being called            | no                         | the callback returns and is dropped  |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::sync::threads;
use crate::sync::threads::LazyThread;
use crate::time::clock;
use crate::time::timer_queue::TimerQueue;

/// The thread's name.
const NAME: &str = "redguard-notify";

/// Handles the loss of a lease that the notifier itself marked lost, except for the callback.
pub(crate) type OnExpiry = Arc<dyn Fn(&Arc<Lease>) + Send + Sync>;

/// The callbacks of all guards, and the thread that runs them, started by the first callback.
pub(crate) struct LossNotifier {
    shared: Arc<NotifierState>,
    on_expiry: OnExpiry,
    thread: LazyThread,
}

struct NotifierState {
    queue: Mutex<NotifierQueue>,
    changed: Condvar,
}

struct NotifierQueue {
    /// By token id, due when the lease is to be checked.
    timers: TimerQueue<WatchedLease>,
    stopping: bool,
}

struct WatchedLease {
    lease: Arc<Lease>,
    callback: OnLostCallback,
}

impl LossNotifier {
    pub(crate) fn new(on_expiry: OnExpiry) -> LossNotifier {
        LossNotifier {
            shared: Arc::new(NotifierState {
                queue: Mutex::new(NotifierQueue {
                    timers: TimerQueue::new(),
                    stopping: false,
                }),
                changed: Condvar::new(),
            }),
            on_expiry,
            thread: LazyThread::new(NAME),
        }
    }

    /// Registers the callback of a lease that is held until `expiry`, or lost already and due now.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    /// - `Closed` if the notifier was stopped: the callback would never run.
    pub(crate) fn watch(
        &self,
        lease: &Arc<Lease>,
        expiry: Instant,
        callback: OnLostCallback,
    ) -> Result<(), Error> {
        if !self.thread.is_started() {
            let (shared, on_expiry) = (Arc::clone(&self.shared), Arc::clone(&self.on_expiry));
            self.thread.start(move || shared.run(&on_expiry))?;
        }
        let watched = WatchedLease {
            lease: Arc::clone(lease),
            callback,
        };
        let mut queue = self.shared.queue.lock();
        if queue.stopping {
            drop(queue); // unlock before `watched` is dropped
            return Err(Error::Closed);
        }
        queue.timers.insert(lease.token().id(), expiry, watched);
        drop(queue); // unlock before waking
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Makes the callback of a lease due at once, because another thread marked the lease lost.
    pub(crate) fn notify_lost(&self, lease: &Lease) {
        let id = lease.token().id();
        let mut queue = self.shared.queue.lock();
        let Some(watched) = queue.timers.remove(id) else {
            return; // no callback, or the thread runs it at this moment
        };
        queue.timers.insert(id, clock::now(), watched);
        drop(queue); // unlock before waking
        self.shared.changed.notify_one();
    }

    /// Drops the callback of a lease that is being released.
    pub(crate) fn forget(&self, lease: &Lease) {
        if self.thread.is_started() {
            let watched = self.shared.queue.lock().timers.remove(lease.token().id());
            // The callback may own anything. Its destructor must not run with the queue locked, and
            // its panic must not reach the `Drop` of a guard.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(watched)));
        }
    }

    /// Ends the thread after the callbacks that are due. Blocks until then, at most until `end`.
    /// Returns `false` if the thread still runs.
    pub(crate) fn stop(&self, end: Instant) -> bool {
        self.shared.queue.lock().stopping = true;
        self.shared.changed.notify_one();
        self.thread.join_until(end)
    }
}

impl NotifierState {
    fn run(&self, on_expiry: &OnExpiry) {
        while let Some((id, watched)) = self.next_due() {
            let state = watched.lease.expire_if_due(clock::now());
            if state == LeaseState::JustLost {
                threads::catch(NAME, || on_expiry(&watched.lease));
            }
            match state {
                LeaseState::Held(expiry) => self.reschedule(id, expiry, watched),
                LeaseState::JustLost | LeaseState::Lost => run_callback(watched),
                LeaseState::Pending | LeaseState::Ended => {}
            }
        }
    }

    /// Blocks until a lease is due and removes it. Returns `None` if the thread is to end.
    fn next_due(&self) -> Option<(u64, WatchedLease)> {
        let mut queue = self.queue.lock();
        loop {
            let due = queue.timers.peek().map(|(due, _)| due);
            match due {
                Some(due) if due <= clock::now() => return queue.timers.pop(),
                _ if queue.stopping => return None,
                Some(due) => _ = self.changed.wait_until(&mut queue, due),
                None => self.changed.wait(&mut queue),
            }
        }
    }

    /// Puts a lease back that was extended. A thread that marked it lost in between did not find it
    /// in the queue, so the lease is checked again under the mutex.
    fn reschedule(&self, id: u64, expiry: Instant, watched: WatchedLease) {
        let mut queue = self.queue.lock();
        let now = clock::now();
        let is_held = matches!(watched.lease.peek(now), LeaseState::Held(_));
        let due = if is_held { expiry } else { now };
        queue.timers.insert(id, due, watched);
    }
}

/// Runs and drops the callback. A panic of either is caught.
fn run_callback(watched: WatchedLease) {
    let WatchedLease { lease, callback } = watched;
    let context = format!("{}: on_lost callback", lease.keys());
    threads::catch(&context, move || {
        callback.0(&LostLock { lease });
        drop(callback);
    });
}
