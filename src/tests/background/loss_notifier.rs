//! Callbacks for lost locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::background::loss_notifier::{LeaseCallbacks, LossNotifier};
use crate::error::error::Error;
use crate::protocol::endangered_lock::{EndangeredLock, OnEndangered};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::lost_lock::OnLostCallback;
use crate::tests::fake_node::node::{eventually, on_log_line};
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
    notifier.watch(&lease, on_lost(callback)).unwrap();
    (lease, notified)
}

fn on_lost(callback: OnLostCallback) -> LeaseCallbacks {
    LeaseCallbacks {
        on_lost: Some(callback),
        on_endangered: None,
    }
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
    notifier.recheck(&lease);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!((count_of(&notified), count_of(&handled)), (1, 1));
}

#[test]
fn loss_found_elsewhere_is_notified_immediately_and_not_handled_again() {
    let (notifier, handled) = notifier();
    let (lease, notified) = watched(&notifier, LONG);
    let (_kept, other) = watched(&notifier, LONG);
    assert!(lease.mark_not_ours());
    notifier.recheck(&lease);
    eventually("the loss is notified", || count_of(&notified) == 1);
    // `stop` still notifies a reported loss, but not a lease that is held.
    let (last, notified) = watched(&notifier, LONG);
    assert!(last.mark_not_ours());
    notifier.recheck(&last);
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
fn callback_that_panics_when_it_is_dropped_ends_no_other() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("panic of the test");
        }
    }
    let (notifier, _) = notifier();
    let watch = |left: Duration| {
        let owned = PanicsInDrop;
        let callback = OnLostCallback(Arc::new(move |_| _ = &owned));
        let lease = lease("x");
        assert!(lease.activate(clock::now() + left, clock::wall_offset()));
        notifier.watch(&lease, on_lost(callback)).unwrap();
        lease
    };
    let [forgotten, released, lost, _kept] = [LONG, LONG, SOON, LONG].map(watch);
    notifier.forget(&forgotten);
    // The thread looks at the lease between the release and `forget`.
    let now = clock::now();
    assert!(matches!(released.begin_release(now), LeaseState::Held(_)));
    notifier.recheck(&released);
    let watched_leases = notifier.watched();
    eventually("the callbacks are dropped", || {
        watched_leases.load(Ordering::SeqCst) == 1
    });
    assert!(lost.loss_reason(clock::now()).is_some());
    let (_other, notified) = watched(&notifier, SOON);
    eventually("another loss is notified", || count_of(&notified) == 1);
    assert!(notifier.stop(clock::now() + LONG));
    drop(notifier); // with a callback that was never called
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
    notifier.recheck(&released);
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
    let refused = notifier.watch(&lease("y"), on_lost(callback));
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
}

#[test]
fn danger_is_reported_once_and_again_after_an_extension_ended_it() {
    let (notifier, handled) = notifier();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let watch = |name: &str, until: Duration, margin: Duration| {
        let (lease, list) = (lease(name), Arc::clone(&reports));
        assert!(lease.activate(clock::now() + until, clock::wall_offset()));
        let report = move |lock: &EndangeredLock| {
            let report = (lock.key().to_owned(), lock.is_endangered());
            list.lock().push(report);
        };
        let on_endangered = OnEndangered {
            margin,
            callback: Arc::new(report),
        };
        let callbacks = LeaseCallbacks {
            on_lost: None,
            on_endangered: Some(on_endangered),
        };
        notifier.watch(&lease, callbacks).unwrap();
        lease
    };
    let told = |expected: &[(&str, bool)]| {
        eventually("the danger is reported", || {
            reports.lock().len() >= expected.len()
        });
        let reports = reports.lock();
        let reports: Vec<_> = reports
            .iter()
            .map(|(key, it)| (key.as_str(), *it))
            .collect();
        assert_eq!(reports, expected);
    };
    let lease = watch("x", 2 * LONG, 2 * LONG - SOON);
    told(&[("x", true)]);
    assert!(lease.is_danger_told());
    // The thread looks at the lease again before the second one is endangered.
    notifier.recheck(&lease);
    let _second = watch("y", LONG, LONG - SOON);
    told(&[("x", true), ("y", true)]);
    lease.extend_to(clock::now(), clock::now() + 9 * LONG, clock::wall_offset());
    notifier.recheck(&lease);
    told(&[("x", true), ("y", true), ("x", false)]);
    assert!(!lease.is_danger_told());
    lease.set_danger_margin(10 * LONG);
    notifier.recheck(&lease);
    told(&[("x", true), ("y", true), ("x", false), ("x", true)]);
    assert!(lease.mark_not_ours());
    notifier.recheck(&lease);
    assert!(notifier.stop(clock::now() + LONG));
    assert_eq!(reports.lock().len(), 4, "a loss is no danger");
    assert_eq!(count_of(&handled), 0);
}

#[test]
fn logger_that_panics_at_a_danger_ends_no_callback() {
    let (notifier, handled) = notifier();
    let (lease, expiry) = (lease("x"), clock::now() + 2 * SOON);
    assert!(lease.activate(expiry, clock::wall_offset()));
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    let callbacks = LeaseCallbacks {
        on_lost: Some(OnLostCallback(Arc::new(move |_| {
            on_log_line(|_| {});
            count.fetch_add(1, Ordering::SeqCst);
        }))),
        on_endangered: Some(OnEndangered {
            margin: SOON,
            // On the thread of the callbacks, which logs the danger after this.
            callback: Arc::new(|_| on_log_line(|_| panic!("as the test wants it"))),
        }),
    };
    notifier.watch(&lease, callbacks).unwrap();
    eventually("the loss is notified", || count_of(&notified) == 1);
    assert_eq!(count_of(&handled), 1);
    let (_other, notified) = watched(&notifier, SOON);
    eventually("another loss is notified", || count_of(&notified) == 1);
}
