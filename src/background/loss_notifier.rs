//! The loss notifier: one thread that runs the `on_lost` and `on_endangered` callbacks (S11, L5).
//!
//! `on_lost` runs once, when its lease is lost; never for a lease that was released.
//! `on_endangered` runs once at the beginning of each danger, and once at its end if an extension
//! ends it. The thread wakes at the expiry of each watched lease, and before that at the beginning
//! of its danger, so both are reported even if no thread checks or renews the lease. A slow
//! callback delays only other callbacks: the thread does no other work.
//!
//! | lease of a callback     | in the timer queue, due at | ends by                              |
//! |-------------------------|----------------------------|--------------------------------------|
//! | held                    | the start of its danger    | due: extended, or endangered: called |
//! | endangered              | its expiry                 | due: lost and called                 |
//! | endangered and extended | at once (`recheck`)        | due: held and called                 |
//! | lost, found by another  | at once (`recheck`)        | due: called                          |
//! | released                | no (`forget`)              | the callbacks are dropped            |
//! | being called            | no                         | the callback returns                 |
//!
//! Without a margin the danger of a lease starts at its expiry.
//!
//! Tests: `src/tests/background/loss_notifier.rs`; `src/tests/engine/danger.rs`, `loss.rs`.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};

use crate::error::duration_text;
use crate::error::error::Error;
use crate::protocol::endangered_lock::{EndangeredLock, OnEndangered};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::primitives::{Condvar, Mutex};
use crate::sync::threads;
use crate::sync::threads::LazyThread;
use crate::time::clock;
use crate::time::timer_queue::TimerQueue;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-notify";

/// Handles the loss of a lease that the notifier itself marked lost, except for the callback.
pub(crate) type OnExpiry = Arc<dyn Fn(&Arc<Lease>) + Send + Sync>;

/// The callbacks of all guards, and the thread that runs them, started by the first callback.
pub(crate) struct LossNotifier {
    shared: Arc<NotifierState>,
    on_expiry: OnExpiry,
    thread: LazyThread,
    watched: Arc<AtomicUsize>,
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

/// The callbacks of one lease.
#[derive(Default)]
pub(crate) struct LeaseCallbacks {
    pub(crate) on_lost: Option<OnLostCallback>,
    pub(crate) on_endangered: Option<OnEndangered>,
}

/// A lease with its callbacks. Its drop does not panic.
struct WatchedLease {
    lease: Arc<Lease>,
    callbacks: LeaseCallbacks,
    /// Counts this lease until it is dropped, after the callbacks.
    _counted: WatchCount,
}

/// One in the number of watched leases.
struct WatchCount(Arc<AtomicUsize>);

impl WatchCount {
    fn new(watched: &Arc<AtomicUsize>) -> WatchCount {
        watched.fetch_add(1, Ordering::AcqRel);
        WatchCount(Arc::clone(watched))
    }
}

impl Drop for WatchCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
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
            watched: Arc::default(),
        }
    }

    /// Returns the number of leases with callbacks, which changes as they come and go.
    pub(crate) fn watched(&self) -> &Arc<AtomicUsize> {
        &self.watched
    }

    /// Registers the callbacks of a lease, which may be lost already.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    /// - `Closed` if the notifier was stopped: the callback would never run.
    pub(crate) fn watch(&self, lease: &Arc<Lease>, callbacks: LeaseCallbacks) -> Result<(), Error> {
        self.thread.start(|| {
            let (shared, on_expiry) = (Arc::clone(&self.shared), Arc::clone(&self.on_expiry));
            move || shared.run(&on_expiry)
        })?;
        if let Some(on_endangered) = &callbacks.on_endangered {
            lease.set_danger_margin(on_endangered.margin);
        }
        let watched = WatchedLease {
            lease: Arc::clone(lease),
            callbacks,
            _counted: WatchCount::new(&self.watched),
        };
        let mut queue = self.shared.queue.lock();
        if queue.stopping {
            drop(queue); // unlock before `watched` is dropped
            return Err(Error::Closed);
        }
        let due = watched.due(clock::now());
        queue.timers.insert(lease.token().id(), due, watched);
        drop(queue); // unlock before waking
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Makes a lease due at once, because another thread marked it lost, or extended it while it
    /// was endangered.
    pub(crate) fn recheck(&self, lease: &Lease) {
        let id = lease.token().id();
        let mut queue = self.shared.queue.lock();
        let Some(watched) = queue.timers.remove(id) else {
            return; // no callback, or the thread runs one at this moment and looks again
        };
        queue.timers.insert(id, clock::now(), watched);
        drop(queue); // unlock before waking
        self.shared.changed.notify_one();
    }

    /// Drops the callback of a lease that is being released.
    pub(crate) fn forget(&self, lease: &Lease) {
        if self.thread.is_started() {
            let watched = self.shared.queue.lock().timers.remove(lease.token().id());
            // Not with the queue locked: the callback may own anything, such as another guard.
            drop(watched);
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
            let now = clock::now();
            let state = watched.lease.expire_if_due(now);
            if state == LeaseState::JustLost {
                threads::catch(NAME, || on_expiry(&watched.lease));
            }
            match state {
                LeaseState::Held(expiry) => {
                    // A panic of the logger ends neither the thread nor the callbacks of the lease.
                    threads::catch(NAME, || watched.report_danger(expiry, now));
                    self.reschedule(id, watched);
                }
                LeaseState::JustLost | LeaseState::Lost => run_on_lost(watched),
                // Released after it was due: `forget` did not find it in the queue.
                LeaseState::Pending | LeaseState::Ended => drop(watched),
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

    /// Puts a held lease back. A thread that marked it lost or extended it in between did not find
    /// it in the queue, so the lease is checked again under the mutex.
    fn reschedule(&self, id: u64, watched: WatchedLease) {
        let mut queue = self.queue.lock();
        let due = watched.due(clock::now());
        queue.timers.insert(id, due, watched);
    }
}

impl WatchedLease {
    /// Returns when the thread has to look at the lease again.
    fn due(&self, now: Instant) -> Instant {
        let LeaseState::Held(expiry) = self.lease.peek(now) else {
            return now;
        };
        let danger_start = self.lease.danger_start(expiry);
        match self.lease.is_danger_told() {
            false => danger_start,
            true if now < danger_start => now,
            true => expiry,
        }
    }

    /// Runs the callback if the danger of a lease that ends at `expiry` has begun or ended since
    /// the last report. A panic of it is caught.
    fn report_danger(&self, expiry: Instant, now: Instant) {
        let is_endangered = self.lease.danger_start(expiry) <= now;
        let was_told = self.lease.is_danger_told();
        let Some(on_endangered) = &self.callbacks.on_endangered else {
            return;
        };
        if is_endangered == was_told {
            return;
        }
        self.lease.set_danger_told(is_endangered);
        let keys = self.lease.keys();
        let context = format!("{keys}: on_endangered callback");
        threads::catch(&context, || {
            (on_endangered.callback)(&EndangeredLock::new(&self.lease, expiry, is_endangered));
        });
        let left = duration_text::format_duration(expiry.saturating_duration_since(clock::now()));
        match is_endangered {
            true => warn!("{keys}: lock endangered: not extended, its lease ends in {left}"),
            false => info!("{keys}: lock out of danger: extended"),
        }
    }
}

/// The callbacks may own anything, and the destructor of a value may panic. That must not reach the
/// `Drop` of a guard, and must not end the thread.
impl Drop for WatchedLease {
    fn drop(&mut self) {
        let callbacks = mem::take(&mut self.callbacks);
        let context = format!("{}: drop of its callbacks", self.lease.keys());
        threads::catch(&context, || drop(callbacks));
    }
}

/// Runs the callback for the loss, and drops the callbacks. A panic of either is caught.
fn run_on_lost(watched: WatchedLease) {
    let lease = Arc::clone(&watched.lease);
    let context = format!("{}: on_lost callback", lease.keys());
    threads::catch(&context, || {
        if let Some(on_lost) = &watched.callbacks.on_lost {
            on_lost.0(&LostLock { lease });
        }
    });
    drop(watched);
}
