//! The teller of losses: one thread with a clock that calls back who wants to be told, and never anybody else's work.
//!
//! A lease is told of once, when it is lost and not when it was released. The thread looks by itself when a lease ends, so
//! a loss is told also where nobody looks and nothing renews. A callback that takes its time delays other callbacks only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::sync::threads;
use crate::sync::threads::BackgroundThread;
use crate::time::clock;
use crate::time::timer_queue::TimerQueue;

/// The thread's name.
const NAME: &str = "redguard-notify";

/// What is owed by whoever finds a lease lost, besides the telling.
pub(crate) type OnExpiry = Arc<dyn Fn(&Arc<Lease>) + Send + Sync>;

/// The callbacks of all guards, and their thread once there is one.
pub(crate) struct LossNotifier {
    desk: Arc<NotifierState>,
    settle: OnExpiry,
    started: AtomicBool,
    thread: Mutex<Option<BackgroundThread>>,
}

struct NotifierState {
    state: Mutex<NotifierQueue>,
    changed: Condvar,
}

struct NotifierQueue {
    agenda: TimerQueue<WatchedLease>,
    stopping: bool,
}

pub(crate) struct WatchedLease {
    lease: Arc<Lease>,
    callback: OnLostCallback,
}

impl LossNotifier {
    pub(crate) fn new(settle: OnExpiry) -> LossNotifier {
        LossNotifier {
            desk: Arc::new(NotifierState {
                state: Mutex::new(NotifierQueue {
                    agenda: TimerQueue::new(),
                    stopping: false,
                }),
                changed: Condvar::new(),
            }),
            settle,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// From now on `tell` is called when a lease is lost that is held until `expiry` at present.
    ///
    /// # Errors
    /// `System` when there is no thread to be had.
    pub(crate) fn watch(
        &self,
        lease: &Arc<Lease>,
        expiry: Instant,
        tell: OnLostCallback,
    ) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (desk, settle) = (Arc::clone(&self.desk), Arc::clone(&self.settle));
            *thread = Some(BackgroundThread::spawn(NAME, move || desk.run(&settle))?);
            self.started.store(true, Ordering::Release);
        }
        drop(thread);
        let lease = Arc::clone(lease);
        let mut state = self.desk.state.lock();
        let id = lease.token().id();
        state.agenda.insert(
            id,
            expiry,
            WatchedLease {
                lease,
                callback: tell,
            },
        );
        drop(state);
        self.desk.changed.notify_one();
        Ok(())
    }

    /// A lease is lost before its time: its callback is due.
    pub(crate) fn notify_lost(&self, lease: &Lease) {
        let id = lease.token().id();
        let mut state = self.desk.state.lock();
        let Some(watched) = state.agenda.remove(id) else {
            return; // nobody wants to know, or it is being told
        };
        state.agenda.insert(id, clock::now(), watched);
        drop(state);
        self.desk.changed.notify_one();
    }

    /// A lease is being released: there is nothing to tell any more.
    pub(crate) fn forget(&self, lease: &Lease) {
        if self.started.load(Ordering::Acquire) {
            let watched = self.desk.state.lock().agenda.remove(lease.token().id());
            // Not under the lock, and not into a guard's `Drop`: the callback may own anything.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(watched)));
        }
    }

    /// Ends the thread when it has told what is lost by now, and waits for that until `end`. `false` if it did not.
    pub(crate) fn stop(&self, end: Instant) -> bool {
        self.desk.state.lock().stopping = true;
        self.desk.changed.notify_one();
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join_until(end))
    }
}

impl NotifierState {
    fn run(&self, settle: &OnExpiry) {
        while let Some((id, watched)) = self.next() {
            let look = watched.lease.expire_if_due(clock::now());
            if look == LeaseState::JustLost {
                threads::catch(NAME, || settle(&watched.lease));
            }
            match look {
                LeaseState::Held(expiry) => self.reschedule(id, expiry, watched),
                LeaseState::JustLost | LeaseState::Lost => run_callback(watched),
                LeaseState::Pending | LeaseState::Ended => {}
            }
        }
    }

    /// Waits for the next lease that ends; `None` when the thread is to end.
    fn next(&self) -> Option<(u64, WatchedLease)> {
        let mut state = self.state.lock();
        loop {
            let due = state.agenda.peek().map(|(due, _)| due);
            match due {
                Some(due) if due <= clock::now() => return state.agenda.pop(),
                _ if state.stopping => return None,
                Some(due) => _ = self.changed.wait_until(&mut state, due),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// It was extended meanwhile. Who made it lost since then has not found it in the agenda.
    fn reschedule(&self, id: u64, expiry: Instant, watched: WatchedLease) {
        let mut state = self.state.lock();
        let now = clock::now();
        let held = matches!(watched.lease.peek(now), LeaseState::Held(_));
        let due = if held { expiry } else { now };
        state.agenda.insert(id, due, watched);
    }
}

/// Calls back, and drops the callback here, where a panic of either does no harm.
pub(crate) fn run_callback(watched: WatchedLease) {
    let WatchedLease {
        lease,
        callback: tell,
    } = watched;
    let callback = format!("{}: callback for its loss", lease.keys());
    threads::catch(&callback, move || {
        tell.0(&LostLock { lease });
        drop(tell);
    });
}
