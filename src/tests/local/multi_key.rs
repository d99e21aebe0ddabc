//! Locks of several keys in the lock table: all entries or none, in an order that excludes
//! deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::local::request::{AccessMode, LocalRequest, Refusal};
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::token::Token;
use crate::sync::primitives::Mutex;
use crate::tests::fake_node::node::eventually;
use crate::time::clock;
use crate::transport::inbox::Inbox;

fn keys(names: &[&str]) -> KeySet {
    KeySet::parse("", names, LockKind::Exclusive).unwrap()
}

fn acquire_names(
    table: &Arc<LockTable>,
    names: &[&str],
    end: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    let inbox = Arc::new(Inbox::new());
    acquire(table, &keys(names), &inbox, end, |_| ())
}

fn acquire(
    table: &Arc<LockTable>,
    keys: &KeySet,
    inbox: &Arc<Inbox>,
    deadline: Option<Instant>,
    on_lost: impl Fn(&Arc<Lease>),
) -> Result<LocalGuard, Refusal> {
    let request = LocalRequest {
        keys,
        mode: AccessMode::Exclusive,
        offer: None,
        inbox,
        deadline,
    };
    table.acquire(&request, on_lost)
}

fn no_wait() -> Option<Instant> {
    Some(clock::now())
}

/// Returns the names whose bits are set in `mask`, optionally in reverse order.
fn names(mask: usize, reversed: bool) -> Vec<&'static str> {
    let all = ["a", "b", "c", "d"];
    let mut names: Vec<_> = (0..4)
        .filter(|n| mask & (1 << n) != 0)
        .map(|n| all[n])
        .collect();
    if reversed {
        names.reverse();
    }
    names
}

#[test]
fn overlapping_key_sets_exclude_each_other_without_deadlock() {
    let table = Arc::new(LockTable::new());
    let holders = [const { AtomicU64::new(0) }; 4];
    thread::scope(|scope| {
        for thread in 0..8 {
            let (table, holders) = (&table, &holders);
            scope.spawn(move || {
                for round in 0..600 {
                    let mask = 1 + (thread * 7 + round * 5) % 15;
                    let end = Some(clock::now() + Duration::from_secs(60)); // a deadlock fails the test
                    let guard = acquire_names(table, &names(mask, round % 2 == 0), end).unwrap();
                    let held = (0..4).filter(|n| mask & (1 << n) != 0);
                    for n in held.clone() {
                        assert_eq!(holders[n].fetch_add(1, Ordering::SeqCst), 0);
                    }
                    held.for_each(|n| _ = holders[n].fetch_sub(1, Ordering::SeqCst));
                    drop(guard);
                }
            });
        }
    });
    assert!(table.state.lock().entries.is_empty());
}

#[test]
fn failed_acquire_of_several_keys_holds_none() {
    let table = Arc::new(LockTable::new());
    let one = acquire_names(&table, &["b"], None).unwrap();
    let busy = acquire_names(&table, &["a", "b", "c"], no_wait()).unwrap_err();
    assert!(matches!(busy, Refusal::Busy { .. }), "{busy:?}");
    let rest = acquire_names(&table, &["a", "c"], no_wait()).unwrap();
    drop(one);
    assert!(acquire_names(&table, &["b", "c"], no_wait()).is_err());
    drop(rest);
    assert!(acquire_names(&table, &["a", "b", "c"], no_wait()).is_ok());
    assert!(table.state.lock().entries.is_empty());
}

#[test]
fn waiter_for_a_later_key_keeps_its_place_at_the_earlier_keys() {
    let table = Arc::new(LockTable::new());
    let later = acquire_names(&table, &["b"], None).unwrap();
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let spawn_waiter = |label: &'static str, names: &'static [&str]| {
            let (table, order) = (&table, &order);
            scope.spawn(move || {
                let guard = acquire_names(table, names, None).unwrap();
                order.lock().push(label);
                drop(guard);
            });
        };
        let waiting = |name: &str| table.waiting(keys(&[name]).first());
        spawn_waiter("both", &["b", "a"]);
        eventually("the first waits for the later key", || waiting("b") == 1);
        spawn_waiter("one", &["a"]);
        eventually("the second waits behind the first", || waiting("a") == 1);
        drop(later);
    });
    assert_eq!(*order.lock(), ["both", "one"]);
}

#[test]
fn expired_holder_of_several_keys_is_evicted_from_each() {
    let table = Arc::new(LockTable::new());
    let hung = acquire_names(&table, &["a", "b"], None).unwrap();
    let lease = Lease::new(keys(&["a", "b"]), Token::empty(), LeaseKind::Exclusive);
    let lease = Arc::new(lease);
    lease.activate(clock::now() + Duration::from_millis(100), 0);
    assert!(hung.attach_lease(&lease));
    let lost_count = AtomicU64::new(0);
    thread::scope(|scope| {
        for names in [["b", "c"], ["a", "d"]] {
            let (table, lost_count) = (&table, &lost_count);
            scope.spawn(move || {
                let inbox = Arc::new(Inbox::new());
                let on_lost = |_: &Arc<Lease>| _ = lost_count.fetch_add(1, Ordering::SeqCst);
                let guard = acquire(table, &keys(&names), &inbox, None, on_lost);
                assert!(guard.is_ok());
            });
        }
    });
    assert_eq!(lost_count.load(Ordering::SeqCst), 1, "lost once");
    drop(hung);
    assert!(table.state.lock().entries.is_empty());
}

#[test]
fn closed_table_and_cancelled_wait_leave_no_entry() {
    for closes in [true, false] {
        let table = Arc::new(LockTable::new());
        let later = acquire_names(&table, &["b"], None).unwrap();
        let inbox = Arc::new(Inbox::new());
        thread::scope(|scope| {
            let both = scope.spawn(|| {
                let both = keys(&["a", "b"]);
                acquire(&table, &both, &inbox, None, |_| ()).map(drop)
            });
            let later = keys(&["b"]);
            eventually("the waiter queues", || table.waiting(later.first()) == 1);
            match closes {
                true => table.close(),
                false => inbox.cancel(),
            }
            let refused = both.join().unwrap();
            let expected = if closes {
                Refusal::Closed
            } else {
                Refusal::Cancelled
            };
            assert_eq!(refused, Err(expected));
        });
        drop(later);
        assert!(table.state.lock().entries.is_empty());
    }
}
