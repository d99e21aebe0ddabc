//! Callbacks for lost locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::background::loss_notifier::LossNotifier;
use crate::error::Error;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::lost_lock::OnLostCallback;
use crate::tests::fake_node::node::eventually;
use crate::tests::fixtures::lease;
use crate::time::clock;

const SOON: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(300);

/// A notifier, and how often it found a lease lost itself.
fn notifier() -> (LossNotifier, Arc<AtomicUsize>) {
    let settled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&settled);
    let settle = Arc::new(move |_: &Arc<Lease>| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (LossNotifier::new(settle), settled)
}

/// A lease that is held for so long, and watched, and how often its loss was told.
fn watched(notifier: &LossNotifier, left: Duration) -> (Arc<Lease>, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let tell = OnLostCallback(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let (lease, expiry) = (lease("x"), clock::now() + left);
    assert!(lease.activate(expiry, clock::wall_offset()));
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
    assert_eq!(lease.expire_if_due(clock::now()), LeaseState::Lost);
    // Once, also where it is said again.
    notifier.notify_lost(&lease);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!((read(&told), read(&settled)), (1, 1));
}

#[test]
fn a_loss_that_others_found_is_told_at_once_and_settled_by_them() {
    let (notifier, settled) = notifier();
    let (lease, told) = watched(&notifier, LONG);
    let (_kept, other) = watched(&notifier, LONG);
    assert!(lease.mark_not_ours());
    notifier.notify_lost(&lease);
    eventually("it is told", || read(&told) == 1);
    // What is lost when it stops is told yet; what is held is not.
    let (last, told) = watched(&notifier, LONG);
    assert!(last.mark_not_ours());
    notifier.notify_lost(&last);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!((read(&told), read(&other), read(&settled)), (1, 0, 0));
}

#[test]
fn a_panic_while_a_loss_is_settled_keeps_no_loss_from_being_told() {
    let settle = |_: &Arc<Lease>| panic!("as the test wants it");
    let notifier = LossNotifier::new(Arc::new(settle));
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
    let look = longer.extend_to(clock::now(), until, clock::wall_offset());
    let (released, forgotten) = watched(&notifier, LONG);
    notifier.forget(&released);
    released.mark_not_ours();
    notifier.notify_lost(&released);
    // Behind both.
    let (_last, told) = watched(&notifier, 2 * SOON);
    eventually("the last is told", || read(&told) == 1);
    assert_eq!(read(&forgotten), 0);
    // But on a machine so busy that it had ended before it was extended.
    let lost = usize::from(!matches!(look, LeaseState::Held(_)));
    assert_eq!(read(&extended), lost);
    assert!(notifier.stop(clock::now() + LONG));
    let by_clock = usize::from(look == LeaseState::Lost);
    assert_eq!(read(&settled), 1 + by_clock);
}

#[test]
fn watch_after_the_stop_is_closed() {
    let (notifier, _) = notifier();
    let (_lease, _told) = watched(&notifier, LONG);
    assert!(notifier.stop(clock::now() + LONG));
    let callback = OnLostCallback(Arc::new(|_| ()));
    let refused = notifier.watch(&lease("y"), clock::now(), callback);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
}
