//! Callbacks for lost locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::background::loss_notifier::Notifier;
use crate::protocol::lease::tests::lease;
use crate::protocol::lease::{Lease, Look};
use crate::protocol::lost_lock::OnLost;
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
