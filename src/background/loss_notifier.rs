//! The teller of losses: one thread with a clock that calls back who wants to be told, and never anybody else's work.
//!
//! A lease is told of once, when it is lost and not when it was released. The thread looks by itself when a lease ends, so
//! a loss is told also where nobody looks and nothing renews. A callback that takes its time delays other callbacks only.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, LossReason};
use crate::protocol::key::Key;
use crate::protocol::lease::{Lease, Look};
use crate::time::clock;
use crate::time::timer_queue::Agenda;
use crate::transport::worker_pool;
use crate::transport::worker_pool::Helper;

/// A lock that was lost: what a callback is told ([`LockOptions::on_lost`](crate::LockOptions::on_lost)).
///
/// ```
/// use redguard::{LockOptions, LossReason, LostLock};
/// use std::time::Duration;
///
/// fn alarm(lost: &LostLock) {
///     let names: Vec<&str> = lost.keys().collect();
///     eprintln!("lost {names:?}: {}", lost.reason());
///     if let (LossReason::NotOurs, Some(token)) = (lost.reason(), lost.fencing_token()) {
///         eprintln!("{}: the store refuses {token} from now on", lost.key());
///     }
/// }
///
/// let options = LockOptions::new(Duration::from_secs(30)).on_lost(alarm);
/// ```
pub struct LostLock {
    lease: Arc<Lease>,
}

impl LostLock {
    #[cfg(feature = "testing")]
    pub(crate) fn of(lease: Arc<Lease>) -> LostLock {
        LostLock { lease }
    }

    /// The lock's name, as it was given; of several the first in their order.
    pub fn key(&self) -> &str {
        self.lease.key().name()
    }

    /// All names of a lock that was taken with several, in their order; of others the one.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.lease.keys().all().iter().map(Key::name)
    }

    /// Why it is lost.
    pub fn reason(&self) -> LossReason {
        // Who is told of a loss comes after it.
        self.lease.loss(clock::now()).unwrap_or(LossReason::Expired)
    }

    /// The fencing token that the guard had, if it was to have one.
    pub fn fencing_token(&self) -> Option<u64> {
        self.lease.fence()
    }
}

impl fmt::Debug for LostLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LostLock");
        shown
            .field("key", &self.key())
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

/// A callback. Equal are clones of one.
#[derive(Clone)]
pub(crate) struct OnLost(pub(crate) Arc<dyn Fn(&LostLock) + Send + Sync>);

impl PartialEq for OnLost {
    fn eq(&self, other: &OnLost) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OnLost {}

impl fmt::Debug for OnLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLost(..)")
    }
}

/// The thread's name.
const NAME: &str = "redguard-notify";

/// What is owed by whoever finds a lease lost, besides the telling.
pub(crate) type Settle = Arc<dyn Fn(&Arc<Lease>) + Send + Sync>;

/// The callbacks of all guards, and their thread once there is one.
pub(crate) struct Notifier {
    desk: Arc<Desk>,
    settle: Settle,
    started: AtomicBool,
    thread: Mutex<Option<Helper>>,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    agenda: Agenda<Watched>,
    stopping: bool,
}

struct Watched {
    lease: Arc<Lease>,
    tell: OnLost,
}

impl Notifier {
    pub(crate) fn new(settle: Settle) -> Notifier {
        Notifier {
            desk: Arc::new(Desk {
                state: Mutex::new(State {
                    agenda: Agenda::new(),
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
        tell: OnLost,
    ) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (desk, settle) = (Arc::clone(&self.desk), Arc::clone(&self.settle));
            *thread = Some(Helper::start(NAME, move || desk.run(&settle))?);
            self.started.store(true, Ordering::Release);
        }
        drop(thread);
        let lease = Arc::clone(lease);
        let mut state = self.desk.state.lock();
        let id = lease.token().id();
        state.agenda.put(id, expiry, Watched { lease, tell });
        drop(state);
        self.desk.changed.notify_one();
        Ok(())
    }

    /// A lease is lost before its time: its callback is due.
    pub(crate) fn lost(&self, lease: &Lease) {
        let id = lease.token().id();
        let mut state = self.desk.state.lock();
        let Some(watched) = state.agenda.take(id) else {
            return; // nobody wants to know, or it is being told
        };
        state.agenda.put(id, clock::now(), watched);
        drop(state);
        self.desk.changed.notify_one();
    }

    /// A lease is being released: there is nothing to tell any more.
    pub(crate) fn forget(&self, lease: &Lease) {
        if self.started.load(Ordering::Acquire) {
            let watched = self.desk.state.lock().agenda.take(lease.token().id());
            // Not under the lock, and not into a guard's `Drop`: the callback may own anything.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(watched)));
        }
    }

    /// Ends the thread when it has told what is lost by now, and waits for that until `end`. `false` if it did not.
    pub(crate) fn stop(&self, end: Instant) -> bool {
        self.desk.state.lock().stopping = true;
        self.desk.changed.notify_one();
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join(end))
    }
}

impl Desk {
    fn run(&self, settle: &Settle) {
        while let Some((id, watched)) = self.next() {
            let look = watched.lease.look(clock::now());
            if look == Look::JustLost {
                worker_pool::catch(NAME, || settle(&watched.lease));
            }
            match look {
                Look::Held(expiry) => self.put_back(id, expiry, watched),
                Look::JustLost | Look::Lost => tell(watched),
                Look::Trying | Look::Ended => {}
            }
        }
    }

    /// Waits for the next lease that ends; `None` when the thread is to end.
    fn next(&self) -> Option<(u64, Watched)> {
        let mut state = self.state.lock();
        loop {
            let due = state.agenda.first().map(|(due, _)| due);
            match due {
                Some(due) if due <= clock::now() => return state.agenda.pop(),
                _ if state.stopping => return None,
                Some(due) => _ = self.changed.wait_until(&mut state, due),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// It was extended meanwhile. Who made it lost since then has not found it in the agenda.
    fn put_back(&self, id: u64, expiry: Instant, watched: Watched) {
        let mut state = self.state.lock();
        let now = clock::now();
        let held = matches!(watched.lease.peek(now), Look::Held(_));
        let due = if held { expiry } else { now };
        state.agenda.put(id, due, watched);
    }
}

/// Calls back, and drops the callback here, where a panic of either does no harm.
fn tell(watched: Watched) {
    let Watched { lease, tell } = watched;
    let callback = format!("{}: callback for its loss", lease.keys());
    worker_pool::catch(&callback, move || {
        tell.0(&LostLock { lease });
        drop(tell);
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;
    use crate::protocol::lease::tests::lease;
    use crate::tests::fake_node::node::eventually;
    use crate::time::clock;

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(300);

    /// A notifier, and how often it found a lease lost itself.
    fn notifier() -> (Notifier, Arc<AtomicUsize>) {
        let settled = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&settled);
        let settle = Arc::new(move |_: &Arc<Lease>| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (Notifier::new(settle), settled)
    }

    /// A lease that is held for so long, and watched, and how often its loss was told.
    fn watched(notifier: &Notifier, left: Duration) -> (Arc<Lease>, Arc<AtomicUsize>) {
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let tell = OnLost(Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        let (lease, expiry) = (lease("x"), clock::now() + left);
        assert!(lease.hold(expiry, clock::lead()));
        notifier.watch(&lease, expiry, tell).unwrap();
        (lease, told)
    }

    fn read(count: &AtomicUsize) -> usize {
        count.load(Ordering::SeqCst)
    }

    #[test]
    fn a_lease_that_ends_is_settled_and_told_by_the_clock() {
        let (notifier, settled) = notifier();
        let (lease, told) = watched(&notifier, SOON);
        eventually("it is told", || read(&told) == 1);
        assert_eq!(read(&settled), 1);
        assert_eq!(lease.look(clock::now()), Look::Lost);
        // Once, also where it is said again.
        notifier.lost(&lease);
        assert!(notifier.stop(clock::now() + LONG));
        assert_eq!((read(&told), read(&settled)), (1, 1));
    }

    #[test]
    fn a_loss_that_others_found_is_told_at_once_and_settled_by_them() {
        let (notifier, settled) = notifier();
        let (lease, told) = watched(&notifier, LONG);
        let (_kept, other) = watched(&notifier, LONG);
        assert!(lease.lose());
        notifier.lost(&lease);
        eventually("it is told", || read(&told) == 1);
        // What is lost when it stops is told yet; what is held is not.
        let (last, told) = watched(&notifier, LONG);
        assert!(last.lose());
        notifier.lost(&last);
        assert!(notifier.stop(clock::now() + LONG));
        assert_eq!((read(&told), read(&other), read(&settled)), (1, 0, 0));
    }

    #[test]
    fn a_panic_while_a_loss_is_settled_keeps_no_loss_from_being_told() {
        let settle = |_: &Arc<Lease>| panic!("as the test wants it");
        let notifier = Notifier::new(Arc::new(settle));
        let (_first, told_first) = watched(&notifier, SOON);
        let (_next, told_next) = watched(&notifier, 2 * SOON);
        eventually("both are told", || {
            (read(&told_first), read(&told_next)) == (1, 1)
        });
        assert!(notifier.stop(clock::now() + LONG));
    }

    #[test]
    fn what_is_extended_or_forgotten_is_not_told() {
        let (notifier, settled) = notifier();
        let (longer, extended) = watched(&notifier, SOON);
        let until = clock::now() + LONG;
        let look = longer.prolong(clock::now(), until, clock::lead());
        let (released, forgotten) = watched(&notifier, LONG);
        notifier.forget(&released);
        released.lose();
        notifier.lost(&released);
        // Behind both.
        let (_last, told) = watched(&notifier, 2 * SOON);
        eventually("the last is told", || read(&told) == 1);
        assert_eq!(read(&forgotten), 0);
        // But on a machine so busy that it had ended before it was extended.
        let lost = usize::from(!matches!(look, Look::Held(_)));
        assert_eq!(read(&extended), lost);
        assert!(notifier.stop(clock::now() + LONG));
        let by_clock = usize::from(look == Look::Lost);
        assert_eq!(read(&settled), 1 + by_clock);
    }
}
