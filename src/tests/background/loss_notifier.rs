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

/// Returns a notifier, and the number of losses that it found and handled.
fn notifier() -> (LossNotifier, Arc<AtomicUsize>) {
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let on_lost = Arc::new(move |_: &Arc<Lease>| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (LossNotifier::new(on_lost), handled)
}

/// Returns a watched lease with `left` until its expiry, and the number of its notifications.
fn watched(notifier: &LossNotifier, left: Duration) -> (Arc<Lease>, Arc<AtomicUsize>) {
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    let callback = OnLostCallback(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let (lease, expiry) = (lease("x"), clock::now() + left);
    assert!(lease.activate(expiry, clock::wall_offset()));
    notifier.watch(&lease, expiry, callback).unwrap();
    (lease, notified)
}

fn count_of(count: &AtomicUsize) -> usize {
    count.load(Ordering::SeqCst)
}

#[test]
fn expired_lease_is_handled_and_notified_by_the_timer() {
    let (notifier, handled) = notifier();
    let (lease, notified) = watched(&notifier, SOON);
    eventually("the loss is notified", || count_of(&notified) == 1);
    assert_eq!(count_of(&handled), 1);
    assert_eq!(lease.expire_if_due(clock::now()), LeaseState::Lost);
    // A second report of the same loss is ignored.
    notifier.notify_lost(&lease);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!((count_of(&notified), count_of(&handled)), (1, 1));
}

#[test]
fn loss_found_elsewhere_is_notified_immediately_and_not_handled_again() {
    let (notifier, handled) = notifier();
    let (lease, notified) = watched(&notifier, LONG);
    let (_kept, other) = watched(&notifier, LONG);
    assert!(lease.mark_not_ours());
    notifier.notify_lost(&lease);
    eventually("the loss is notified", || count_of(&notified) == 1);
    // `stop` still notifies a reported loss, but not a lease that is held.
    let (last, notified) = watched(&notifier, LONG);
    assert!(last.mark_not_ours());
    notifier.notify_lost(&last);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!(
        (count_of(&notified), count_of(&other), count_of(&handled)),
        (1, 0, 0)
    );
}

#[test]
fn panic_in_the_loss_handler_suppresses_no_notification() {
    let on_lost = |_: &Arc<Lease>| panic!("panic of the test");
    let notifier = LossNotifier::new(Arc::new(on_lost));
    let (_first, first_notified) = watched(&notifier, SOON);
    let (_next, next_notified) = watched(&notifier, 2 * SOON);
    eventually("both losses are notified", || {
        (count_of(&first_notified), count_of(&next_notified)) == (1, 1)
    });
    assert!(notifier.stop(clock::now() + LONG));
}

#[test]
fn extended_or_forgotten_lease_is_not_notified() {
    let (notifier, handled) = notifier();
    let (longer, extended) = watched(&notifier, SOON);
    let until = clock::now() + LONG;
    let state = longer.extend_to(clock::now(), until, clock::wall_offset());
    let (released, forgotten) = watched(&notifier, LONG);
    notifier.forget(&released);
    released.mark_not_ours();
    notifier.notify_lost(&released);
    // The timer reaches this lease after the two others.
    let (_last, notified) = watched(&notifier, 2 * SOON);
    eventually("the last loss is notified", || count_of(&notified) == 1);
    assert_eq!(count_of(&forgotten), 0);
    // On a slow machine the lease may have expired before the extension.
    let lost = usize::from(!matches!(state, LeaseState::Held(_)));
    assert_eq!(count_of(&extended), lost);
    assert!(notifier.stop(clock::now() + LONG));
    let by_clock = usize::from(state == LeaseState::Lost);
    assert_eq!(count_of(&handled), 1 + by_clock);
}

#[test]
fn watch_after_stop_returns_closed() {
    let (notifier, _) = notifier();
    let (_lease, _told) = watched(&notifier, LONG);
    assert!(notifier.stop(clock::now() + LONG));
    let callback = OnLostCallback(Arc::new(|_| ()));
    let refused = notifier.watch(&lease("y"), clock::now(), callback);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
}
