//! The lock table alone: cases on real threads, and all interleavings of a few by loom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::entry::{AccessMode, LocalRequest, Refusal};
use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LockKind;
use crate::tests::fixtures::lease;
use crate::transport::inbox::Inbox;

fn key() -> Key {
    Key::parse("test:", "x", LockKind::Exclusive).unwrap()
}

fn enter(gate: &Arc<LockTable>, end: Option<Instant>) -> Result<LocalGuard, Refusal> {
    enter_as(gate, AccessMode::Exclusive, end)
}

fn share(gate: &Arc<LockTable>, end: Option<Instant>) -> Result<LocalGuard, Refusal> {
    enter_as(gate, AccessMode::Shared, end)
}

fn enter_as(
    gate: &Arc<LockTable>,
    access: AccessMode,
    end: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    acquire(gate, &key().into(), access, &Arc::new(Inbox::new()), end)
}

fn acquire(
    gate: &Arc<LockTable>,
    keys: &KeySet,
    mode: AccessMode,
    inbox: &Arc<Inbox>,
    deadline: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    gate.acquire(&request(keys, mode, inbox, deadline), |_| ())
}

fn request<'a>(
    keys: &'a KeySet,
    mode: AccessMode,
    inbox: &'a Arc<Inbox>,
    deadline: Option<Instant>,
) -> LocalRequest<'a> {
    LocalRequest {
        keys,
        mode,
        offer: None,
        inbox,
        deadline,
    }
}

#[cfg(not(loom))]
mod table {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;
    use crate::local::entry::{AccessMode, LocalWaiter, Refusal};
    use crate::local::guard::LocalGuard;
    use crate::local::handoff::HandoffOffer;
    use crate::local::lock_table::LockTable;
    use crate::protocol::key::Key;
    use crate::protocol::lease::Lease;
    use crate::protocol::request::{Op, Request};
    use crate::sync::primitives::Mutex;
    use crate::tests::fake_node::node::eventually;
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    #[test]
    fn threads_get_the_slot_in_the_order_in_which_they_came() {
        let gate = Arc::new(LockTable::new());
        let first = enter(&gate, None).unwrap();
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for number in 0..8 {
                let (gate, order) = (&gate, &order);
                scope.spawn(move || {
                    let entered = enter(gate, None).unwrap();
                    order.lock().push(number);
                    drop(entered);
                });
                eventually("it queues", || gate.waiting(&key()) == number + 1);
            }
            drop(first);
        });
        assert_eq!(*order.lock(), (0..8).collect::<Vec<_>>());
        assert!(gate.state.lock().entries.is_empty());
    }

    #[test]
    fn handed_off_entry_comes_with_its_handoff() {
        let gate = Arc::new(LockTable::new());
        let first = enter(&gate, None).unwrap();
        assert!(gate.state.lock().entries.contains_key(&key()));
        let alone = first.hand_off(&lease("x"), clock::now(), 0, 3);
        assert!(alone.is_none(), "nobody waits");
        let inbox = Arc::new(Inbox::new());
        let offer = HandoffOffer {
            swap: Request::new(Op::Swap, &lease("x"), 1),
            deadline: None,
        };
        let former = lease("x");
        let (handed, second) = thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let keys = key().into();
                let mut request = request(&keys, AccessMode::Exclusive, &inbox, None);
                request.offer = Some(&offer);
                gate.acquire(&request, |_| ())
            });
            eventually("it queues", || gate.waiting(&key()) == 1);
            let handed = first.hand_off(&former, clock::now(), 0, 3);
            inbox.wake();
            drop(first);
            (handed, waits.join().unwrap().unwrap())
        });
        let handed = handed.unwrap();
        assert!(Arc::ptr_eq(
            handed.swap.former_lease.as_ref().unwrap(),
            &former
        ));
        assert!(Arc::ptr_eq(&handed.inbox, &inbox));
        let baton = second.take_handoff().unwrap();
        assert!(Arc::ptr_eq(&baton.former, &former) && baton.round == handed.round);
        assert!(second.take_handoff().is_none(), "only once");
        let is_held = gate.state.lock().entries.contains_key(&key());
        assert!(is_held, "the first one has left before");
        drop(second);
        assert!(gate.state.lock().entries.is_empty());
    }

    #[test]
    fn closed_lock_table_hands_nothing_off() {
        let gate = Arc::new(LockTable::new());
        let first = enter(&gate, None).unwrap();
        let offer = HandoffOffer {
            swap: Request::new(Op::Swap, &lease("x"), 1),
            deadline: None,
        };
        gate.close();
        let mut state = gate.state.lock();
        let slot = state.entries.get_mut(&key()).unwrap();
        slot.queue.push_back(LocalWaiter {
            ticket: 2,
            mode: AccessMode::Exclusive,
            inbox: Arc::new(Inbox::new()),
            offer: Some(offer),
            rechecks_at: None,
        });
        drop(state);
        assert!(first.hand_off(&lease("x"), clock::now(), 0, 3).is_none());
    }

    #[test]
    fn try_acquire_enters_a_free_key_and_queues_for_none() {
        let table = Arc::new(LockTable::new());
        let keys = KeySet::from(key());
        let inbox = Arc::new(Inbox::new());
        let exclusive = request(&keys, AccessMode::Exclusive, &inbox, None);
        let held = table.try_acquire(&exclusive).unwrap().unwrap();
        assert!(table.try_acquire(&exclusive).unwrap().is_none(), "held");
        assert_eq!(table.waiting(&key()), 0, "not queued");
        drop(held);
        assert!(table.state.lock().entries.is_empty());
        let permit = |limit| request(&keys, AccessMode::Limited(limit), &inbox, None);
        let held = table.try_acquire(&permit(2)).unwrap();
        let refused = table.try_acquire(&permit(3)).map(drop);
        assert_eq!(refused, Err(Refusal::PermitCountMismatch(2)));
        drop(held);
        let several = KeySet::parse("", &["a", "b"], LockKind::Exclusive).unwrap();
        let several = request(&several, AccessMode::Exclusive, &inbox, None);
        assert!(table.try_acquire(&several).unwrap().is_none());
        table.close();
        let refused = table.try_acquire(&exclusive).map(drop);
        assert_eq!(refused, Err(Refusal::Closed));
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn one_inside_at_a_time() {
        let gate = Arc::new(LockTable::new());
        let inside = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let entered = enter(&gate, None).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(entered);
                    }
                });
            }
        });
        assert!(gate.state.lock().entries.is_empty());
    }

    #[test]
    fn keys_at_rest_take_no_memory() {
        let gate = Arc::new(LockTable::new());
        let mut passes = Vec::new();
        for n in 0..10_000 {
            let key = Key::parse("", &n.to_string(), LockKind::Exclusive).unwrap();
            let inbox = Arc::new(Inbox::new());
            passes.push(acquire(&gate, &key.into(), AccessMode::Exclusive, &inbox, None).unwrap());
        }
        drop(passes);
        let state = gate.state.lock();
        assert!(state.entries.is_empty() && state.entries.capacity() < 1_000);
    }

    #[test]
    fn a_time_out_leaves_the_queue_and_the_next_watches_the_lease() {
        let gate = Arc::new(LockTable::new());
        let entered = enter(&gate, None).unwrap();
        let lease = lease("x");
        let soon = clock::now() + Duration::from_millis(500);
        let end = clock::now() + Duration::from_secs(2);
        lease.activate(end, 0);
        entered.attach_lease(&lease);
        thread::scope(|scope| {
            let first = scope.spawn(|| enter(&gate, Some(soon)).err());
            eventually("it queues", || gate.waiting(&key()) > 0);
            let second = scope.spawn(|| enter_and_tell(&gate, AccessMode::Exclusive));
            let refused = first.join().unwrap();
            let alone = |refused: &Refusal| {
                matches!(
                    refused,
                    Refusal::Busy {
                        by: AccessMode::Exclusive,
                        remaining: Some(_)
                    }
                )
            };
            assert!(refused.is_some_and(|refused| alone(&refused)));
            // Nobody leaves: the second gets in because it has made the lease lost.
            let (second, lost) = second.join().unwrap();
            assert!(clock::now() >= lease_end(end));
            assert!(lost.len() == 1 && Arc::ptr_eq(&lost[0], &lease));
            drop(entered);
            assert!(
                enter(&gate, Some(clock::now())).is_err(),
                "still the second's"
            );
            drop(second);
            assert!(enter(&gate, Some(clock::now())).is_ok());
        });
    }

    /// A lease's expiry is kept in whole microseconds.
    fn lease_end(end: Instant) -> Instant {
        clock::from_micros(clock::to_micros(end)).unwrap()
    }

    #[test]
    fn later_waiter_does_not_pass_an_earlier_one() {
        let gate = Arc::new(LockTable::new());
        let entered = enter(&gate, None).unwrap();
        let lease = lease("x");
        lease.activate(clock::now() + Duration::from_secs(60), 0);
        entered.attach_lease(&lease);
        thread::scope(|scope| {
            let first = scope.spawn(|| enter_and_tell(&gate, AccessMode::Exclusive));
            eventually("it queues", || gate.waiting(&key()) > 0);
            lease.mark_not_ours();
            // The lease is lost, but the slot is for the one who came first.
            let busy = enter(&gate, Some(clock::now())).unwrap_err();
            let unknown = Refusal::Busy {
                by: AccessMode::Exclusive,
                remaining: None,
            };
            assert_eq!(busy, unknown);
            gate.recheck(&key().into());
            let (_first, lost) = first.join().unwrap();
            assert!(lost.is_empty(), "the loss was another's to tell");
        });
    }

    /// Enters, and answers the leases that this made lost as well.
    fn enter_and_tell(gate: &Arc<LockTable>, access: AccessMode) -> (LocalGuard, Vec<Arc<Lease>>) {
        let told = Mutex::new(Vec::new());
        let tell = |lease: &Arc<Lease>| told.lock().push(Arc::clone(lease));
        let inbox = Arc::new(Inbox::new());
        let pass = gate
            .acquire(&request(&key().into(), access, &inbox, None), tell)
            .unwrap();
        (pass, told.into_inner())
    }

    fn at_once() -> Option<Instant> {
        Some(clock::now())
    }

    #[test]
    fn readers_share_and_one_alone_shares_with_nobody() {
        let gate = Arc::new(LockTable::new());
        let readers = [share(&gate, at_once()), share(&gate, at_once())].map(Result::unwrap);
        let busy = enter(&gate, at_once()).unwrap_err();
        assert!(
            matches!(
                busy,
                Refusal::Busy {
                    by: AccessMode::Shared,
                    ..
                }
            ),
            "{busy:?}"
        );
        drop(readers);
        let writer = enter(&gate, at_once()).unwrap();
        for refused in [enter(&gate, at_once()), share(&gate, at_once())] {
            let busy = refused.unwrap_err();
            assert!(
                matches!(
                    busy,
                    Refusal::Busy {
                        by: AccessMode::Exclusive,
                        ..
                    }
                ),
                "{busy:?}"
            );
        }
        drop(writer);
        assert!(gate.state.lock().entries.is_empty());
    }

    #[test]
    fn a_reader_does_not_pass_a_writer_that_waits_and_readers_behind_it_enter_together() {
        let gate = Arc::new(LockTable::new());
        let reader = share(&gate, None).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| enter(&gate, None).unwrap());
            eventually("the writer queues", || gate.waiting(&key()) == 1);
            let busy = share(&gate, at_once()).unwrap_err();
            assert!(
                matches!(
                    busy,
                    Refusal::Busy {
                        by: AccessMode::Exclusive,
                        ..
                    }
                ),
                "{busy:?}"
            );
            let behind: Vec<_> = (2..6)
                .map(|waiting| {
                    let behind = scope.spawn(|| share(&gate, None).unwrap());
                    eventually("a reader queues", || gate.waiting(&key()) == waiting);
                    behind
                })
                .collect();
            drop(reader);
            drop(writer.join().unwrap());
            // None of them has left when the last is in.
            let inside: Vec<_> = behind
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect();
            assert!(enter(&gate, at_once()).is_err());
            drop(inside);
        });
        assert!(gate.state.lock().entries.is_empty());
    }

    #[test]
    fn a_writer_that_gives_up_lets_the_readers_behind_it_in() {
        let gate = Arc::new(LockTable::new());
        let _reader = share(&gate, None).unwrap();
        let soon = clock::now() + Duration::from_secs(2);
        thread::scope(|scope| {
            let writer = scope.spawn(|| enter(&gate, Some(soon)).is_err());
            eventually("the writer queues", || gate.waiting(&key()) == 1);
            let behind = scope.spawn(|| share(&gate, None).unwrap());
            assert!(writer.join().unwrap());
            behind.join().unwrap();
        });
    }

    #[test]
    fn a_writer_takes_the_slot_from_readers_when_the_last_lease_has_ended() {
        let gate = Arc::new(LockTable::new());
        let now = clock::now();
        let leases = [lease("x"), lease("x"), lease("x")];
        let ends = [300, 50, 150].map(|ms| now + Duration::from_millis(ms));
        let passes = leases.each_ref().map(|_| share(&gate, None).unwrap());
        for ((lease, pass), end) in leases.iter().zip(&passes).zip(ends) {
            lease.activate(end, 0);
            pass.attach_lease(lease);
        }
        let (_writer, lost) = enter_and_tell(&gate, AccessMode::Exclusive);
        assert!(clock::now() >= lease_end(ends[0]));
        assert_eq!(lost.len(), 3);
        drop(passes);
        assert!(share(&gate, at_once()).is_err(), "still the writer's");
    }

    #[test]
    fn downgraded_holder_admits_readers_and_no_writer() {
        let gate = Arc::new(LockTable::new());
        let writer = enter(&gate, None).unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| share(&gate, None).unwrap());
            eventually("the reader queues", || gate.waiting(&key()) == 1);
            writer.downgrade();
            let reader = reader.join().unwrap();
            assert!(enter(&gate, at_once()).is_err());
            drop(reader);
            assert!(enter(&gate, at_once()).is_err());
            drop(writer);
            assert!(enter(&gate, at_once()).is_ok());
        });
    }

    #[test]
    fn of_those_that_share_and_ask_one_asks_for_all() {
        let gate = Arc::new(LockTable::new());
        let inboxes = [0; 3].map(|_| Arc::new(Inbox::new()));
        let [first, second, third] = inboxes
            .each_ref()
            .map(|inbox| acquire(&gate, &key().into(), AccessMode::Shared, inbox, None).unwrap());
        assert_eq!(
            [&first, &second, &third].map(LocalGuard::follow_leader),
            [false, true, true]
        );
        drop(first);
        let woken = |inbox: &Inbox| inbox.sleep(at_once());
        assert!(woken(&inboxes[1]), "it is the one from now on");
        assert!(!woken(&inboxes[2]));
        assert_eq!(
            [&second, &third].map(LocalGuard::follow_leader),
            [false, true]
        );
        let lease = lease("x");
        lease.activate(clock::now() + Duration::from_secs(60), 0);
        assert!(second.attach_lease(&lease));
        assert!(
            woken(&inboxes[2]),
            "what one was granted the others may be, too"
        );
        assert!(!third.follow_leader());
    }
}

/// All interleavings, by the model checker. Time does not pass in it: a wake-up that is lost is a dead-lock.
#[cfg(loom)]
mod loom_gate {
    use std::sync::atomic::Ordering;

    use loom::sync::atomic::AtomicU64;

    use super::*;
    use crate::local::entry::Refusal;
    use crate::local::lock_table::LockTable;
    use crate::time::clock;

    #[test]
    fn loom_one_inside_and_no_wake_up_is_lost() {
        loom::model(|| {
            let gate = Arc::new(LockTable::new());
            let inside = Arc::new(AtomicU64::new(0));
            let visit = |gate: &Arc<LockTable>, inside: &AtomicU64| {
                let entered = enter(gate, None).unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two inside");
                inside.fetch_sub(1, Ordering::Relaxed);
                drop(entered);
            };
            let threads = [0; 2].map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                loom::thread::spawn(move || visit(&gate, &inside))
            });
            visit(&gate, &inside);
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(gate.state.lock().entries.is_empty());
        });
    }

    #[test]
    fn loom_a_waiter_passes_a_holder_that_lost_its_lease() {
        let start = clock::now();
        loom::model(move || {
            let gate = Arc::new(LockTable::new());
            let holder = enter(&gate, None).unwrap();
            let waiter = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || drop(enter(&gate, None).unwrap()))
            };
            let lease = lease("x");
            assert!(lease.activate(start + Duration::from_secs(3600), 0));
            assert!(holder.attach_lease(&lease));
            // As a reply does that says the lock is not ours: the holder itself hangs and never leaves.
            assert!(lease.mark_not_ours());
            gate.recheck(&key().into());
            waiter.join().unwrap();
            drop(holder);
            assert!(gate.state.lock().entries.is_empty());
        });
    }

    #[test]
    fn loom_closing_reaches_every_waiter() {
        loom::model(|| {
            let gate = Arc::new(LockTable::new());
            let holder = enter(&gate, None).unwrap();
            let waiter = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || enter(&gate, None).map(drop))
            };
            gate.close();
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
            drop(holder);
        });
    }

    #[test]
    fn loom_readers_and_a_writer_do_not_meet_and_nobody_sleeps_for_ever() {
        // All interleavings take minutes. Two changes of thread against its will show what there is to be seen.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let gate = Arc::new(LockTable::new());
            // Readers count one each, the writer counts a hundred.
            let inside = Arc::new(AtomicU64::new(0));
            let readers = [0; 2].map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                loom::thread::spawn(move || {
                    let pass = share(&gate, None).unwrap();
                    assert!(
                        inside.fetch_add(1, Ordering::Relaxed) < 100,
                        "beside a writer"
                    );
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(pass);
                })
            });
            let pass = enter(&gate, None).unwrap();
            assert_eq!(inside.fetch_add(100, Ordering::Relaxed), 0, "not alone");
            inside.fetch_sub(100, Ordering::Relaxed);
            drop(pass);
            for reader in readers {
                reader.join().unwrap();
            }
            assert!(gate.state.lock().entries.is_empty());
        });
    }
}
