//! The lock table alone, in cases on real threads and in all interleavings by loom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::local::request::{AccessMode, LocalRequest, Refusal};
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LockKind;
use crate::tests::fixtures::lease;
use crate::transport::inbox::Inbox;

fn key() -> Key {
    Key::parse("test:", "x", LockKind::Exclusive).unwrap()
}

fn acquire_exclusive(table: &Arc<LockTable>, end: Option<Instant>) -> Result<LocalGuard, Refusal> {
    acquire_as(table, AccessMode::Exclusive, end)
}

fn acquire_shared(table: &Arc<LockTable>, end: Option<Instant>) -> Result<LocalGuard, Refusal> {
    acquire_as(table, AccessMode::Shared, end)
}

fn acquire_as(
    table: &Arc<LockTable>,
    access: AccessMode,
    end: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    acquire(table, &key().into(), access, &Arc::new(Inbox::new()), end)
}

fn acquire(
    table: &Arc<LockTable>,
    keys: &KeySet,
    mode: AccessMode,
    inbox: &Arc<Inbox>,
    deadline: Option<Instant>,
) -> Result<LocalGuard, Refusal> {
    table.acquire(&request(keys, mode, inbox, deadline), |_| ())
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
    use crate::local::guard::LocalGuard;
    use crate::local::handoff::{FormerRelease, HandoffOffer};
    use crate::local::lock_table::LockTable;
    use crate::local::request::{AccessMode, Refusal};
    use crate::protocol::key::Key;
    use crate::protocol::lease::Lease;
    use crate::protocol::request::{Op, Request};
    use crate::sync::primitives::Mutex;
    use crate::tests::fake_node::node::eventually;
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    fn offer() -> HandoffOffer {
        HandoffOffer {
            swap: Request::new(Op::Swap, &lease("x"), 1),
            deadline: None,
        }
    }

    #[test]
    fn kept_entry_admits_no_thread_before_its_end_and_takes_no_memory_after_it() {
        let table = Arc::new(LockTable::new());
        let start = clock::now();
        let (end, long) = (
            start + Duration::from_millis(300),
            start + Duration::from_secs(60),
        );
        acquire_exclusive(&table, None)
            .unwrap()
            .release_at(Some(end));
        if let Err(refusal) = acquire_exclusive(&table, Some(start)) {
            let Refusal::Busy { remaining, .. } = refusal else {
                panic!("{refusal:?}")
            };
            assert!(remaining.is_some_and(|left| left <= end - start));
        }
        let next = acquire_exclusive(&table, Some(long)).unwrap();
        assert!(clock::now() >= end);
        next.release_at(Some(clock::now()));
        let other: KeySet = Key::parse("test:", "y", LockKind::Exclusive)
            .unwrap()
            .into();
        let inbox = Arc::new(Inbox::new());
        drop(acquire(&table, &other, AccessMode::Exclusive, &inbox, None));
        assert_eq!(table.entry_count(), 0);
    }

    #[test]
    fn waiters_acquire_the_entry_in_fifo_order() {
        let table = Arc::new(LockTable::new());
        let first = acquire_exclusive(&table, None).unwrap();
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for index in 0..8 {
                let (table, order) = (&table, &order);
                scope.spawn(move || {
                    let guard = acquire_exclusive(table, None).unwrap();
                    order.lock().push(index);
                    drop(guard);
                });
                eventually("the thread queues", || table.waiting(&key()) == index + 1);
            }
            drop(first);
        });
        assert_eq!(*order.lock(), (0..8).collect::<Vec<_>>());
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn waiter_of_a_handed_off_entry_receives_the_handoff() {
        let table = Arc::new(LockTable::new());
        let first = acquire_exclusive(&table, None).unwrap();
        assert!(table.state.lock().entries.contains_key(&key()));
        let is_busy = first.hand_off(clock::now(), 3, || FormerRelease::of(&lease("x")));
        assert!(is_busy.is_none(), "no thread waits");
        let inbox = Arc::new(Inbox::new());
        let offer = offer();
        let former = lease("x");
        let (handed, second) = thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let keys = key().into();
                let mut request = request(&keys, AccessMode::Exclusive, &inbox, None);
                request.offer = Some(&offer);
                table.acquire(&request, |_| ())
            });
            eventually("the thread queues", || table.waiting(&key()) == 1);
            let handed = first.hand_off(clock::now(), 3, || FormerRelease::of(&former));
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
        let handoff = second.take_handoff().unwrap();
        assert!(Arc::ptr_eq(&handoff.former.lease, &former) && handoff.round == handed.round);
        assert!(
            second.take_handoff().is_none(),
            "the handoff is returned once"
        );
        let is_held = table.state.lock().entries.contains_key(&key());
        assert!(is_held, "the second guard keeps the entry");
        drop(second);
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn closed_lock_table_hands_nothing_off() {
        let table = Arc::new(LockTable::new());
        let first = acquire_exclusive(&table, None).unwrap();
        let offer = offer();
        table.close();
        let mut state = table.state.lock();
        let entry = state.entries.get_mut(&key()).unwrap();
        let (keys, inbox) = (KeySet::from(key()), Arc::new(Inbox::new()));
        let request = request(&keys, AccessMode::Exclusive, &inbox, None);
        let offer = Some(&offer);
        entry.enqueue(2, &LocalRequest { offer, ..request });
        drop(state);
        assert!(
            first
                .hand_off(clock::now(), 3, || FormerRelease::of(&lease("x")))
                .is_none()
        );
    }

    #[test]
    fn try_acquire_acquires_a_free_key_and_never_queues() {
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
    fn exclusive_entry_has_one_holder_at_a_time() {
        let table = Arc::new(LockTable::new());
        let holders = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let guard = acquire_exclusive(&table, None).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn unused_keys_take_no_memory() {
        let table = Arc::new(LockTable::new());
        let mut guards = Vec::new();
        for n in 0..10_000 {
            let key = Key::parse("", &n.to_string(), LockKind::Exclusive).unwrap();
            let inbox = Arc::new(Inbox::new());
            guards.push(acquire(&table, &key.into(), AccessMode::Exclusive, &inbox, None).unwrap());
        }
        drop(guards);
        let state = table.state.lock();
        assert!(state.entries.is_empty() && state.entries.capacity() < 1_000);
    }

    #[test]
    fn timed_out_waiter_leaves_the_queue_and_the_next_expires_the_lease() {
        let table = Arc::new(LockTable::new());
        let guard = acquire_exclusive(&table, None).unwrap();
        let lease = lease("x");
        let soon = clock::now() + Duration::from_millis(500);
        let end = clock::now() + Duration::from_secs(2);
        lease.activate(end, 0);
        guard.attach_lease(&lease);
        thread::scope(|scope| {
            let first = scope.spawn(|| acquire_exclusive(&table, Some(soon)));
            eventually("the thread queues", || table.waiting(&key()) > 0);
            let second = scope.spawn(|| acquire_and_collect_lost(&table, AccessMode::Exclusive));
            let remaining = assert_busy(first.join().unwrap(), AccessMode::Exclusive);
            assert!(remaining.is_some());
            // The holder keeps its guard. The second thread acquires because it marks the expired
            // lease as lost.
            let (second, lost) = second.join().unwrap();
            assert!(clock::now() >= lease_end(end));
            assert!(lost.len() == 1 && Arc::ptr_eq(&lost[0], &lease));
            drop(guard);
            assert!(
                acquire_exclusive(&table, no_wait()).is_err(),
                "the second holds the entry"
            );
            drop(second);
            assert!(acquire_exclusive(&table, no_wait()).is_ok());
        });
    }

    /// A lease stores its expiry in whole microseconds.
    fn lease_end(end: Instant) -> Instant {
        clock::from_micros(clock::to_micros(end)).unwrap()
    }

    #[test]
    fn guard_with_the_keys_of_its_lease_holds_the_entry_until_its_own_release() {
        let table = Arc::new(LockTable::new());
        let guard = acquire_exclusive(&table, None).unwrap();
        let lease = lease("x");
        lease.activate(clock::now() + Duration::from_secs(60), 0);
        assert!(guard.attach_lease(&lease));
        let guard = guard.with_keys_of(&lease);
        assert!(Arc::ptr_eq(guard.lease(), &lease));
        assert_eq!(guard.keys().single(), Some(&key()));
        assert!(acquire_exclusive(&table, no_wait()).is_err());
        guard.release();
        let next = acquire_exclusive(&table, no_wait()).unwrap();
        guard.release_at(Some(clock::now() + Duration::from_secs(60)));
        drop(guard);
        assert!(acquire_exclusive(&table, no_wait()).is_err(), "the next's");
        drop(next);
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn later_waiter_does_not_overtake_an_earlier_one() {
        let table = Arc::new(LockTable::new());
        let guard = acquire_exclusive(&table, None).unwrap();
        let lease = lease("x");
        lease.activate(clock::now() + Duration::from_secs(60), 0);
        guard.attach_lease(&lease);
        thread::scope(|scope| {
            let first = scope.spawn(|| acquire_and_collect_lost(&table, AccessMode::Exclusive));
            eventually("the thread queues", || table.waiting(&key()) > 0);
            lease.mark_not_ours();
            // The lease is lost, but the entry belongs to the first waiter.
            let busy = acquire_exclusive(&table, no_wait());
            assert_eq!(assert_busy(busy, AccessMode::Exclusive), None);
            table.recheck(&key().into());
            let (_first, lost) = first.join().unwrap();
            assert!(lost.is_empty(), "another thread handles the loss");
        });
    }

    /// Acquires the entry. Returns the guard and the leases that the acquire marked as lost.
    fn acquire_and_collect_lost(
        table: &Arc<LockTable>,
        access: AccessMode,
    ) -> (LocalGuard, Vec<Arc<Lease>>) {
        let lost = Mutex::new(Vec::new());
        let on_lost = |lease: &Arc<Lease>| lost.lock().push(Arc::clone(lease));
        let inbox = Arc::new(Inbox::new());
        let guard = table
            .acquire(&request(&key().into(), access, &inbox, None), on_lost)
            .unwrap();
        (guard, std::mem::take(&mut *lost.lock()))
    }

    fn no_wait() -> Option<Instant> {
        Some(clock::now())
    }

    /// Checks that the entry was held in this access mode. Returns the time until it may be free.
    fn assert_busy(refused: Result<LocalGuard, Refusal>, held: AccessMode) -> Option<Duration> {
        match refused {
            Err(Refusal::Busy { by, remaining }) if by == held => remaining,
            other => panic!("{:?}", other.map(drop)),
        }
    }

    #[test]
    fn readers_share_the_entry_and_a_writer_excludes_all() {
        let table = Arc::new(LockTable::new());
        let readers = [
            acquire_shared(&table, no_wait()),
            acquire_shared(&table, no_wait()),
        ]
        .map(Result::unwrap);
        assert_busy(acquire_exclusive(&table, no_wait()), AccessMode::Shared);
        drop(readers);
        let writer = acquire_exclusive(&table, no_wait()).unwrap();
        for refused in [
            acquire_exclusive(&table, no_wait()),
            acquire_shared(&table, no_wait()),
        ] {
            assert_busy(refused, AccessMode::Exclusive);
        }
        drop(writer);
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn reader_behind_a_waiting_writer_waits_and_later_readers_acquire_together() {
        let table = Arc::new(LockTable::new());
        let reader = acquire_shared(&table, None).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| acquire_exclusive(&table, None).unwrap());
            eventually("the writer queues", || table.waiting(&key()) == 1);
            assert_busy(acquire_shared(&table, no_wait()), AccessMode::Exclusive);
            let behind: Vec<_> = (2..6)
                .map(|waiting| {
                    let behind = scope.spawn(|| acquire_shared(&table, None).unwrap());
                    eventually("a reader queues", || table.waiting(&key()) == waiting);
                    behind
                })
                .collect();
            drop(reader);
            drop(writer.join().unwrap());
            // All readers hold the entry at the same time.
            let holders: Vec<_> = behind
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect();
            assert!(acquire_exclusive(&table, no_wait()).is_err());
            drop(holders);
        });
        assert!(table.state.lock().entries.is_empty());
    }

    #[test]
    fn timed_out_writer_admits_the_readers_behind_it() {
        let table = Arc::new(LockTable::new());
        let _reader = acquire_shared(&table, None).unwrap();
        let soon = clock::now() + Duration::from_secs(2);
        thread::scope(|scope| {
            let writer = scope.spawn(|| acquire_exclusive(&table, Some(soon)).is_err());
            eventually("the writer queues", || table.waiting(&key()) == 1);
            let behind = scope.spawn(|| acquire_shared(&table, None).unwrap());
            assert!(writer.join().unwrap());
            behind.join().unwrap();
        });
    }

    #[test]
    fn writer_acquires_the_entry_when_the_last_reader_lease_has_expired() {
        let table = Arc::new(LockTable::new());
        let now = clock::now();
        let leases = [lease("x"), lease("x"), lease("x")];
        let ends = [300, 50, 150].map(|ms| now + Duration::from_millis(ms));
        let guards = leases
            .each_ref()
            .map(|_| acquire_shared(&table, None).unwrap());
        for ((lease, guard), end) in leases.iter().zip(&guards).zip(ends) {
            lease.activate(end, 0);
            guard.attach_lease(lease);
        }
        let (_writer, lost) = acquire_and_collect_lost(&table, AccessMode::Exclusive);
        assert!(clock::now() >= lease_end(ends[0]));
        assert_eq!(lost.len(), 3);
        drop(guards);
        assert!(
            acquire_shared(&table, no_wait()).is_err(),
            "the writer holds the entry"
        );
    }

    #[test]
    fn downgraded_holder_admits_readers_and_no_writer() {
        let table = Arc::new(LockTable::new());
        let writer = acquire_exclusive(&table, None).unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| acquire_shared(&table, None).unwrap());
            eventually("the reader queues", || table.waiting(&key()) == 1);
            writer.downgrade();
            let reader = reader.join().unwrap();
            assert!(acquire_exclusive(&table, no_wait()).is_err());
            drop(reader);
            assert!(acquire_exclusive(&table, no_wait()).is_err());
            drop(writer);
            assert!(acquire_exclusive(&table, no_wait()).is_ok());
        });
    }

    #[test]
    fn waiting_readers_follow_one_leader_and_a_grant_wakes_them() {
        let table = Arc::new(LockTable::new());
        let inboxes = [0; 3].map(|_| Arc::new(Inbox::new()));
        let [first, second, third] = inboxes
            .each_ref()
            .map(|inbox| acquire(&table, &key().into(), AccessMode::Shared, inbox, None).unwrap());
        assert_eq!(
            [&first, &second, &third].map(LocalGuard::follow_leader),
            [false, true, true]
        );
        drop(first);
        let woken = |inbox: &Inbox| inbox.sleep(no_wait());
        assert!(woken(&inboxes[1]), "the next reader leads");
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
            "a grant of the leader wakes its followers"
        );
        assert!(!third.follow_leader());
    }
}

/// All interleavings by loom. Time does not pass in the model, so a lost wake-up is a deadlock.
#[cfg(loom)]
mod loom_table {
    use std::sync::atomic::Ordering;

    use loom::sync::atomic::AtomicU64;

    use super::*;
    use crate::local::lock_table::LockTable;
    use crate::local::request::Refusal;
    use crate::time::clock;

    #[test]
    fn loom_entry_has_one_holder_and_loses_no_wake_up() {
        loom::model(|| {
            let table = Arc::new(LockTable::new());
            let holders = Arc::new(AtomicU64::new(0));
            let hold_once = |table: &Arc<LockTable>, holders: &AtomicU64| {
                let guard = acquire_exclusive(table, None).unwrap();
                assert_eq!(holders.fetch_add(1, Ordering::Relaxed), 0, "two holders");
                holders.fetch_sub(1, Ordering::Relaxed);
                drop(guard);
            };
            let threads = [0; 2].map(|_| {
                let (table, holders) = (Arc::clone(&table), Arc::clone(&holders));
                loom::thread::spawn(move || hold_once(&table, &holders))
            });
            hold_once(&table, &holders);
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(table.state.lock().entries.is_empty());
        });
    }

    #[test]
    fn loom_waiter_acquires_after_the_holder_lost_its_lease() {
        let start = clock::now();
        loom::model(move || {
            let table = Arc::new(LockTable::new());
            let holder = acquire_exclusive(&table, None).unwrap();
            let waiter = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || drop(acquire_exclusive(&table, None).unwrap()))
            };
            let lease = lease("x");
            assert!(lease.activate(start + Duration::from_secs(3600), 0));
            assert!(holder.attach_lease(&lease));
            // Simulates a reply that the lock is not ours, while the holder hangs and keeps its
            // guard.
            assert!(lease.mark_not_ours());
            table.recheck(&key().into());
            waiter.join().unwrap();
            drop(holder);
            assert!(table.state.lock().entries.is_empty());
        });
    }

    #[test]
    fn loom_close_wakes_every_waiter() {
        loom::model(|| {
            let table = Arc::new(LockTable::new());
            let holder = acquire_exclusive(&table, None).unwrap();
            let waiter = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || acquire_exclusive(&table, None).map(drop))
            };
            table.close();
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
            drop(holder);
        });
    }

    #[test]
    fn loom_readers_and_a_writer_exclude_each_other_and_lose_no_wake_up() {
        // All interleavings take minutes. Two preemptions reach every pair of steps that matters.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let table = Arc::new(LockTable::new());
            // Readers count 1 each, the writer counts 100.
            let holders = Arc::new(AtomicU64::new(0));
            let readers = [0; 2].map(|_| {
                let (table, holders) = (Arc::clone(&table), Arc::clone(&holders));
                loom::thread::spawn(move || {
                    let guard = acquire_shared(&table, None).unwrap();
                    assert!(
                        holders.fetch_add(1, Ordering::Relaxed) < 100,
                        "reader with a writer"
                    );
                    holders.fetch_sub(1, Ordering::Relaxed);
                    drop(guard);
                })
            });
            let guard = acquire_exclusive(&table, None).unwrap();
            assert_eq!(holders.fetch_add(100, Ordering::Relaxed), 0, "not alone");
            holders.fetch_sub(100, Ordering::Relaxed);
            drop(guard);
            for reader in readers {
                reader.join().unwrap();
            }
            assert!(table.state.lock().entries.is_empty());
        });
    }
}
