//! Locks of several keys at the gate: all slots or none, in an order that dead-locks nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::local::entry::{AccessMode, LocalRequest, Refusal};
use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
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

fn enter(
    gate: &Arc<LockTable>,
    names: &[&str],
    end: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    let inbox = Arc::new(Inbox::new());
    acquire(gate, &keys(names), &inbox, end, |_| ())
}

fn acquire(
    gate: &Arc<LockTable>,
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
    gate.acquire(&request, on_lost)
}

fn at_once() -> Option<Instant> {
    Some(clock::now())
}

/// Names with the bits of `mask`, turned round every other time.
fn names(mask: usize, turned: bool) -> Vec<&'static str> {
    let all = ["a", "b", "c", "d"];
    let mut some: Vec<_> = (0..4)
        .filter(|n| mask & (1 << n) != 0)
        .map(|n| all[n])
        .collect();
    if turned {
        some.reverse();
    }
    some
}

#[test]
fn sets_that_overlap_exclude_each_other_and_nobody_waits_in_a_circle() {
    let gate = Arc::new(LockTable::new());
    let inside = [const { AtomicU64::new(0) }; 4];
    thread::scope(|scope| {
        for thread in 0..8 {
            let (gate, inside) = (&gate, &inside);
            scope.spawn(move || {
                for round in 0..600 {
                    let mask = 1 + (thread * 7 + round * 5) % 15;
                    let end = Some(clock::now() + Duration::from_secs(60)); // for who would wait for ever
                    let pass = enter(gate, &names(mask, round % 2 == 0), end).unwrap();
                    let held = (0..4).filter(|n| mask & (1 << n) != 0);
                    for n in held.clone() {
                        assert_eq!(inside[n].fetch_add(1, Ordering::SeqCst), 0);
                    }
                    held.for_each(|n| _ = inside[n].fetch_sub(1, Ordering::SeqCst));
                    drop(pass);
                }
            });
        }
    });
    assert!(gate.state.lock().entries.is_empty());
}

#[test]
fn acquire_of_several_keys_that_fails_holds_none() {
    let gate = Arc::new(LockTable::new());
    let one = enter(&gate, &["b"], None).unwrap();
    let busy = enter(&gate, &["a", "b", "c"], at_once()).unwrap_err();
    assert!(matches!(busy, Refusal::Busy { .. }), "{busy:?}");
    let rest = enter(&gate, &["a", "c"], at_once()).unwrap();
    drop(one);
    assert!(enter(&gate, &["b", "c"], at_once()).is_err());
    drop(rest);
    assert!(enter(&gate, &["a", "b", "c"], at_once()).is_ok());
    assert!(gate.state.lock().entries.is_empty());
}

#[test]
fn waiter_for_a_later_key_keeps_its_place_at_the_earlier_keys() {
    let gate = Arc::new(LockTable::new());
    let later = enter(&gate, &["b"], None).unwrap();
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let go = |who: &'static str, names: &'static [&str]| {
            let (gate, order) = (&gate, &order);
            scope.spawn(move || {
                let pass = enter(gate, names, None).unwrap();
                order.lock().push(who);
                drop(pass);
            });
        };
        let waiting = |name: &str| gate.waiting(keys(&[name]).first());
        go("both", &["b", "a"]);
        eventually("it waits for the later one", || waiting("b") == 1);
        go("one", &["a"]);
        eventually("it waits behind it", || waiting("a") == 1);
        drop(later);
    });
    assert_eq!(*order.lock(), ["both", "one"]);
}

#[test]
fn a_hung_holder_of_several_is_passed_over_at_each_of_its_keys() {
    let gate = Arc::new(LockTable::new());
    let hung = enter(&gate, &["a", "b"], None).unwrap();
    let lease = Lease::new(keys(&["a", "b"]), Token::empty(), LeaseKind::Exclusive);
    let lease = Arc::new(lease);
    lease.activate(clock::now() + Duration::from_millis(100), 0);
    assert!(hung.attach_lease(&lease));
    let told = AtomicU64::new(0);
    thread::scope(|scope| {
        for names in [["b", "c"], ["a", "d"]] {
            let (gate, told) = (&gate, &told);
            scope.spawn(move || {
                let inbox = Arc::new(Inbox::new());
                let settle = |_: &Arc<Lease>| _ = told.fetch_add(1, Ordering::SeqCst);
                let pass = acquire(gate, &keys(&names), &inbox, None, settle);
                assert!(pass.is_ok());
            });
        }
    });
    assert_eq!(told.load(Ordering::SeqCst), 1, "lost once");
    drop(hung);
    assert!(gate.state.lock().entries.is_empty());
}

#[test]
fn a_closed_gate_and_a_cancelled_wait_leave_no_key_behind() {
    for closes in [true, false] {
        let gate = Arc::new(LockTable::new());
        let later = enter(&gate, &["b"], None).unwrap();
        let inbox = Arc::new(Inbox::new());
        thread::scope(|scope| {
            let both = scope.spawn(|| {
                let both = keys(&["a", "b"]);
                acquire(&gate, &both, &inbox, None, |_| ()).map(drop)
            });
            let later = keys(&["b"]);
            eventually("it waits", || gate.waiting(later.first()) == 1);
            match closes {
                true => gate.close(),
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
        assert!(gate.state.lock().entries.is_empty());
    }
}
