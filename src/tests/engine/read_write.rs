//! Read-write locks over fake nodes that differ: quorums, gates, reader turns and downgrades.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, connected_locker, eventually, gate_entries_were_released,
};
use crate::tests::fake_node::stored_lock::{ReaderTurn, StoredLock};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);
/// The limit of waits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(20);
/// The TTL of a lock that expires in the test.
const BRIEF: Duration = Duration::from_secs(1);

fn rw(fakes: &[Arc<FakeNode>], adjust: impl FnOnce(Config) -> Config) -> RedisRwLocker {
    RedisRwLocker::new(
        connected_locker(fakes, adjust)
            .expect("a quorum is up")
            .nodes(),
    )
}

fn healthy(fakes: &[Arc<FakeNode>]) -> RedisRwLocker {
    rw(fakes, |config| config)
}

/// Returns options that wait long for a lock that must be granted.
fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

fn impatient() -> LockOptions {
    LockOptions::new(TTL).wait_for(SHORT)
}

fn stored_lock(fake: &FakeNode) -> StoredLock {
    fake.stored_lock("x", LockKind::ReadWrite)
}

fn modify(fakes: &[Arc<FakeNode>], mut act: impl FnMut(&mut StoredLock)) {
    for fake in fakes {
        fake.modify("x", LockKind::ReadWrite, &mut act);
    }
}

/// Another owner writes or reads on these nodes.
fn a_writer(stored: &mut StoredLock) {
    stored.owner = Some(("stranger".into(), clock::now() + TTL));
}

fn a_reader(stored: &mut StoredLock) {
    stored.readers.insert("stranger".into(), clock::now() + TTL);
}

fn a_gate(stored: &mut StoredLock) {
    stored.gate.insert("stranger".into(), clock::now() + TTL);
}

fn nobody(stored: &mut StoredLock) {
    *stored = StoredLock::default();
}

/// Returns the token of the only waiting writer. On a slow machine its gate entry may expire until
/// the next refresh.
fn place(fake: &FakeNode) -> String {
    let mut place = None;
    eventually("a place at the gate", || {
        place = stored_lock(fake).gate.into_keys().next();
        place.is_some()
    });
    place.expect("it was there")
}

/// A refused reader has left its reader marker. No timer decides whether it gets its reader turn.
fn a_quorum_is_asked_for_a_turn(fakes: &[Arc<FakeNode>]) {
    fakes.iter().for_each(|fake| fake.keep_markers(TTL));
    most(
        fakes,
        "it has left its mark on a quorum",
        |stored| matches!(stored.turn, Some((ReaderTurn::Requested, end)) if end > clock::now() + TTL / 2),
    );
}

fn all(fakes: &[Arc<FakeNode>], what: &str, holds: impl Fn(&StoredLock) -> bool) {
    eventually(what, || fakes.iter().all(|fake| holds(&stored_lock(fake))));
}

/// Waits until a quorum of the nodes satisfies `holds`. On a slow machine the last node may never
/// be asked, because two have decided.
fn most(fakes: &[Arc<FakeNode>], what: &str, holds: impl Fn(&StoredLock) -> bool) {
    let of = |fake: &&Arc<FakeNode>| holds(&stored_lock(fake));
    eventually(what, || fakes.iter().filter(of).count() > fakes.len() / 2);
}

fn all_free(fakes: &[Arc<FakeNode>]) {
    all(fakes, "no owner and no waiter is left", |stored| {
        stored.owner.is_none() && stored.readers.is_empty() && stored.gate.is_empty()
    });
}

// S10: a reader and a writer never overlap on a quorum.

#[test]
fn a_writer_and_a_reader_that_see_different_nodes_do_not_both_win() {
    for read_first in [true, false] {
        let fakes = FakeNode::fakes(5);
        let lockers = [healthy(&fakes), healthy(&fakes)];
        let down = |fakes: &[Arc<FakeNode>], other: &[Arc<FakeNode>]| {
            other.iter().for_each(|fake| fake.set_fault(Fault::None));
            fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
        };
        // The first locker reaches A, B and C.
        down(&fakes[3..], &[]);
        let options = patient();
        let (mut reader, mut writer) = (None, None);
        match read_first {
            true => reader = Some(lockers[0].acquire_read("x", &options).expect("a quorum")),
            false => writer = Some(lockers[0].acquire_write("x", &options).expect("a quorum")),
        }
        // The second locker reaches C, D and E.
        down(&fakes[..2], &fakes[3..]);
        let asked = |fake: &Arc<FakeNode>| fake.count(Op::Acquire);
        let before = [asked(&fakes[3]), asked(&fakes[4])];
        eventually("D and E are asked", || {
            let won = match read_first {
                true => matches!(lockers[1].try_write("x", TTL), Ok(Some(_))),
                false => matches!(lockers[1].try_read("x", TTL), Ok(Some(_))),
            };
            assert!(!won, "a reader with a writer");
            asked(&fakes[3]) > before[0] && asked(&fakes[4]) > before[1]
        });
        drop((reader, writer));
    }
}

#[test]
fn minority_of_refusals_does_not_matter() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes[..1], a_reader);
    locker
        .write("x", TTL)
        .expect("two of three")
        .release()
        .expect("still ours");
    modify(&fakes[..1], a_writer);
    locker
        .read("x", TTL)
        .expect("two of three")
        .release()
        .expect("still ours");
    assert!(
        stored_lock(&fakes[0]).owner.is_some(),
        "the token of the other owner is left alone"
    );
}

#[test]
fn each_reader_of_a_process_has_its_own_lease() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let first = locker.read("x", TTL).expect("free");
    let second = locker.read("x", TTL).expect("shared");
    all(&fakes, "both are there", |stored| stored.readers.len() == 2);
    first.release().expect("ours");
    all(&fakes, "one is left", |stored| stored.readers.len() == 1);
    assert!(second.is_held());
    assert!(locker.try_write("x", TTL).expect("no error").is_none());
    drop(second);
    all_free(&fakes);
}

#[test]
fn timed_out_wait_names_the_blocker() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let write = || locker.acquire_write("x", &impatient()).expect_err("held");
    let read = || locker.acquire_read("x", &impatient()).expect_err("held");
    modify(&fakes, a_writer);
    assert!(matches!(write(), Error::WriteLockHeld { .. }));
    assert!(matches!(read(), Error::WriteLockTimeout { .. }));
    modify(&fakes, nobody);
    modify(&fakes, a_reader);
    assert!(matches!(write(), Error::ReadersTimeout { .. }));
    modify(&fakes, a_gate);
    assert!(matches!(read(), Error::WriteLockTimeout { .. }));
    // If nodes differ, the majority of the replies decides: here of any three nodes.
    let fakes = FakeNode::fakes(5);
    let locker = healthy(&fakes);
    let write = || locker.acquire_write("x", &impatient()).expect_err("held");
    modify(&fakes[..1], a_writer);
    modify(&fakes[1..], a_reader);
    assert!(matches!(write(), Error::ReadersTimeout { .. }));
    modify(&fakes, nobody);
    modify(&fakes[..4], a_writer);
    modify(&fakes[4..], a_reader);
    assert!(matches!(write(), Error::WriteLockHeld { .. }));
}

#[test]
fn max_attempts_are_counted_apart_from_wait_and_ttl() {
    let fakes = FakeNode::fakes(1);
    let locker = rw(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(3),
            ..RetryPolicy::default()
        })
    });
    let options = LockOptions::new(TTL);
    let acquires = || fakes[0].count(Op::Acquire);
    modify(&fakes, a_writer);
    let error = locker.acquire_read("x", &options).expect_err("held");
    assert!(matches!(error, Error::WriteLockTimeout { attempts: 3, .. }));
    assert_eq!(acquires(), 3);
    let error = locker.acquire_write("x", &options).expect_err("held");
    assert!(matches!(error, Error::WriteLockHeld { attempts: 3, .. }));
    assert_eq!(acquires(), 6);
    modify(&fakes, nobody);
    modify(&fakes, a_reader);
    let error = locker.acquire_write("x", &options).expect_err("held");
    assert!(matches!(error, Error::ReadersTimeout { attempts: 3, .. }));
    assert_eq!(acquires(), 9);
    // The wait uses up the attempts.
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()).map(drop));
        eventually("it continues to ask", || acquires() > 9 + 3);
        modify(&fakes, |stored| stored.readers.clear());
        writer.join().expect("no panic").expect("it is free");
    });
}

// The gate: writers get in.

#[test]
fn waiting_writer_blocks_new_readers_and_acquires() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let reader = other.read("x", TTL).expect("free");
    all(&fakes, "it reads everywhere", |stored| {
        stored.readers.len() == 1
    });
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes, "its place is at the gate", |stored| {
            stored.gate.len() == 1
        });
        // On a slow machine the refresh of the gate entry may be late at any single moment.
        eventually("readers are turned away", || {
            other.try_read("x", TTL).expect("no error").is_none()
        });
        reader.extend(TTL).expect("the reader continues");
        drop(reader);
        let writer = writer.join().expect("no panic").expect("it is its turn");
        all(&fakes, "the place is left", |stored| stored.gate.is_empty());
        writer.release().expect("ours");
    });
    assert!(other.try_read("x", TTL).expect("no error").is_some());
    all_free(&fakes);
}

#[test]
fn try_write_blocks_no_reader() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    modify(&fakes, a_reader);
    assert!(locker.try_write("x", TTL).expect("no error").is_none());
    assert!(locker.acquire_write("x", &at_once).is_err());
    modify(&fakes, |stored| stored.readers.clear());
    modify(&fakes, a_writer);
    assert!(locker.try_read("x", TTL).expect("no error").is_none());
    assert!(locker.acquire_read("x", &at_once).is_err());
    for fake in &fakes {
        assert!(stored_lock(fake).gate.is_empty() && stored_lock(fake).turn.is_none());
    }
}

#[test]
fn timed_out_writer_releases_its_gate_entry() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes, a_reader);
    let gives_up = || {
        let writer = locker.acquire_write("x", &impatient());
        writer.expect_err("it gives up");
        all(&fakes, "no place is left", |stored| stored.gate.is_empty());
        gate_entries_were_released(&fakes)
    };
    // The gate entry is released, not only expired. A worker delayed beyond its expiry need not
    // release it, so one success is enough.
    assert!((0..20).any(|_| gives_up()));
}

#[test]
fn writer_without_a_quorum_releases_its_gate_entry_and_adds_none() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes, a_reader);
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes, "its place is at the gate", |stored| {
            stored.gate.len() == 1
        });
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Down));
        eventually("the place is left", || {
            stored_lock(&fakes[0]).gate.is_empty()
        });
        let asked = fakes[0].count(Op::Acquire);
        eventually("it continues to ask", || {
            fakes[0].count(Op::Acquire) > asked + 3
        });
        assert!(stored_lock(&fakes[0]).gate.is_empty());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        modify(&fakes, |stored| stored.readers.clear());
        drop(writer.join().expect("no panic").expect("a quorum is back"));
    });
    all_free(&fakes);
}

#[test]
fn writers_in_a_split_vote_undo_grants_and_keep_gate_entries() {
    let fakes = FakeNode::fakes(4);
    let locker = healthy(&fakes);
    // Another writer was granted by two of four nodes.
    modify(&fakes[..2], a_writer);
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes[..2], "a place where it was refused", |stored| {
            stored.gate.len() == 1
        });
        all(&fakes[2..], "the grants are undone", |stored| {
            stored.owner.is_none()
        });
        let (first, asked) = (place(&fakes[0]), fakes[0].count(Op::Acquire));
        eventually("it continues to ask", || {
            fakes[0].count(Op::Acquire) > asked + 3
        });
        assert_eq!(place(&fakes[0]), first, "one token for all its attempts");
        modify(&fakes[..2], |stored| stored.owner = None);
        let writer = writer.join().expect("no panic");
        drop(writer.expect("the other has undone its part"));
    });
    all_free(&fakes);
}

#[test]
fn split_vote_of_two_writers_has_one_winner() {
    let fakes = FakeNode::fakes(4);
    let lockers = [healthy(&fakes), healthy(&fakes)];
    thread::scope(|scope| {
        for locker in &lockers {
            scope.spawn(move || {
                for _ in 0..50 {
                    drop(
                        locker
                            .acquire_write("x", &patient())
                            .expect("within its wait"),
                    );
                }
            });
        }
    });
    all_free(&fakes);
}

// Turns: readers get in, too.

#[test]
fn refused_reader_gets_a_reader_turn_after_the_release_of_the_writer() {
    for on_drop in [OnDrop::Wait, OnDrop::Background] {
        let fakes = FakeNode::fakes(3);
        let locker = rw(&fakes, |config| config.on_drop(on_drop));
        let [other, third] = [healthy(&fakes), healthy(&fakes)];
        let writer = locker.write("x", TTL).expect("free");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let reader = other.acquire_read("x", &patient()).expect("it gets a turn");
                // During the reader turn writers are refused and the gate does not count.
                drop(reader);
            });
            a_quorum_is_asked_for_a_turn(&fakes);
            modify(&fakes, a_gate);
            drop(writer);
            waiting
                .join()
                .expect("granted in spite of the foreign gate entry");
        });
        most(&fakes, "the reader turn is active", |stored| {
            matches!(stored.turn, Some((ReaderTurn::Active, _)))
        });
        assert!(third.try_write("x", TTL).expect("no error").is_none());
        let late = third.try_read("x", TTL).expect("no error");
        assert!(late.is_some(), "past the gate, in the readers' turn");
        drop(late);
        modify(&fakes, |stored| stored.turn = None);
        assert!(third.try_read("x", TTL).expect("no error").is_none());
        eventually("no reader is left, so a writer gets in", || {
            third.try_write("x", TTL).expect("no error").is_some()
        });
    }
}

#[test]
fn undo_of_an_attempt_begins_no_reader_turn() {
    let fakes = FakeNode::fakes(4);
    let locker = healthy(&fakes);
    modify(&fakes[..2], a_writer);
    modify(&fakes, |stored| {
        stored.turn = Some((ReaderTurn::Requested, clock::now() + TTL))
    });
    let refusing = [fakes[0].delay(Op::Acquire), fakes[1].delay(Op::Acquire)];
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_write("x", TTL));
        all(&fakes[2..], "these grant", |stored| stored.owner.is_some());
        refusing.iter().for_each(Rendezvous::arrived);
        // Only the first vote is delayed, not its repeats.
        fakes[..2]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        refusing.iter().for_each(Rendezvous::go);
        let refused = tried.join().expect("it does not panic");
        assert!(refused.expect("no error").is_none());
    });
    all(&fakes[2..], "the grants are undone", |stored| {
        stored.owner.is_none()
    });
    for fake in &fakes {
        assert!(matches!(
            stored_lock(fake).turn,
            Some((ReaderTurn::Requested, _))
        ));
    }
}

#[test]
fn waiting_readers_of_a_process_acquire_together() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes, a_writer);
    let inside = std::sync::Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let reader = locker.acquire_read("x", &patient()).expect("it is free");
                inside.wait();
                drop(reader);
            });
        }
        eventually("all have asked", || fakes[0].count(Op::Acquire) >= 8);
        let (began, asked) = (clock::now(), fakes[0].count(Op::Acquire));
        let more = || fakes[0].count(Op::Acquire) - asked;
        eventually("a while in which it asks again", || {
            clock::now() > began + 3 * SHORT && more() > 0
        });
        // One reader asks for all, about every 25 ms. Eight separate readers would ask eight times
        // as often.
        let (more, most) = (more(), (clock::now() - began).as_millis() / 8 + 10);
        assert!(more as u128 <= most, "{more} of {most}");
        modify(&fakes, nobody);
    });
    all_free(&fakes);
}

#[test]
fn next_reader_leads_when_the_leader_gives_up() {
    let fakes = FakeNode::fakes(3);
    let locker = &healthy(&fakes);
    modify(&fakes, a_writer);
    thread::scope(|scope| {
        let first = scope.spawn(|| locker.acquire_read("x", &impatient()).is_err());
        eventually("it asks", || fakes[0].count(Op::Acquire) > 0);
        let long = LockOptions::new(TTL).wait_for(3 * LIMIT);
        let second = scope.spawn(move || locker.acquire_read("x", &long).map(drop));
        assert!(first.join().expect("no panic"));
        // Each reader may have asked once when it began to wait.
        let asked = fakes[0].count(Op::Acquire);
        eventually("it asks", || fakes[0].count(Op::Acquire) > asked + 3);
        modify(&fakes, nobody);
        second.join().expect("no panic").expect("it is free");
    });
}

// Downgrade.

#[test]
fn downgrade_admits_readers_and_no_writer() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let writer = locker.write("x", TTL).expect("free");
    let left = writer.remaining();
    let reader = writer.downgrade().expect("ours");
    assert!(reader.remaining() <= left && reader.is_held());
    all(&fakes, "a reader everywhere", |stored| {
        stored.owner.is_none() && stored.readers.len() == 1
    });
    for locker in [&locker, &other] {
        assert!(locker.try_write("x", TTL).expect("no error").is_none());
        assert!(locker.try_read("x", TTL).expect("no error").is_some());
    }
    reader.extend(2 * TTL).expect("a reader like any other");
    reader.release().expect("ours");
    all_free(&fakes);
}

#[test]
fn downgrade_begins_a_reader_turn_for_waiting_readers() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let writer = locker.write("x", TTL).expect("free");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| other.acquire_read("x", &patient()));
        a_quorum_is_asked_for_a_turn(&fakes);
        modify(&fakes, a_gate);
        let reader = writer.downgrade().expect("ours");
        let second = waiting.join().expect("no panic");
        drop(second.expect("granted in spite of the foreign gate entry"));
        drop(reader);
    });
}

#[test]
fn downgrade_without_a_quorum_leaves_a_read_lock() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    for extends in [false, true] {
        let writer = locker.write("x", TTL).expect("free");
        all(&fakes, "it is everywhere", |stored| stored.owner.is_some());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Fails(Op::Downgrade)));
        let reader = writer.downgrade().expect("held as it was");
        assert!(stored_lock(&fakes[1]).owner.is_some(), "in its old form");
        assert!(other.try_write("x", TTL).expect("no error").is_none());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        if extends {
            reader.extend(TTL).expect("in both forms");
            all(&fakes, "the downgrade is made up for", |stored| {
                stored.readers.len() == 1
            });
            assert!(other.try_read("x", TTL).expect("no error").is_some());
        }
        reader.release().expect("in both forms");
        all_free(&fakes);
    }
}

#[test]
fn downgrade_of_a_lost_lock_returns_lock_lost() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let writer = locker.write("x", TTL).expect("free");
    fakes.iter().for_each(|fake| fake.wipe());
    assert!(matches!(
        writer.downgrade().expect_err("lost"),
        Error::LockLost { .. }
    ));
    assert_eq!(
        locker.nodes().drop_failures(),
        0,
        "the error was returned before"
    );
    let brief = locker.write("x", BRIEF).expect("the stored is free again");
    eventually("it expires", || !brief.is_held());
    assert!(matches!(
        brief.downgrade().expect_err("lost"),
        Error::LockLost { .. }
    ));
}

// S5, S8: restores and lost leases.

#[test]
fn lost_key_is_restored_in_spite_of_gate_and_reader_turn() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let reader = locker.read("x", TTL).expect("free");
    all(&fakes, "it is everywhere", |stored| {
        stored.readers.len() == 1
    });
    modify(&fakes[2..], |stored| {
        nobody(stored);
        a_gate(stored);
    });
    // The next extension that receives the reply in time restores it. Two of three replies are
    // enough for an extension.
    eventually("it is put back past the gate", || {
        reader.extend(TTL).expect("two of three");
        stored_lock(&fakes[2]).readers.len() == 1
    });
    drop(reader);
    modify(&fakes, nobody);
    let writer = locker.write("x", TTL).expect("free");
    all(&fakes, "it is everywhere", |stored| stored.owner.is_some());
    modify(&fakes[2..], |stored| {
        nobody(stored);
        stored.turn = Some((ReaderTurn::Active, clock::now() + TTL));
    });
    eventually("it is put back past the turn", || {
        writer.extend(TTL).expect("two of three");
        stored_lock(&fakes[2]).owner.is_some()
    });
    modify(&fakes[2..], |stored| {
        nobody(stored);
        a_reader(stored);
    });
    let restored = || fakes[2].count(Op::Restore);
    let before = restored();
    eventually("a restore is tried", || {
        writer.extend(TTL).expect("two of three");
        restored() > before
    });
    assert!(stored_lock(&fakes[2]).owner.is_none(), "not past a reader");
    writer.release().expect("two of three");
}

#[test]
fn writer_acquires_the_entry_after_the_lease_of_a_hung_reader() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let hung = locker.read("x", BRIEF).expect("free");
    let writer = locker
        .write("x", TTL)
        .expect("the reader's lease has ended");
    assert!(writer.is_held() && !hung.is_held());
    assert!(matches!(hung.release(), Err(Error::LockLost { .. })));
    assert!(locker.try_read("x", TTL).expect("no error").is_none());
}

#[test]
fn delays_never_exceed_the_refresh_of_gate_and_reader_turn() {
    let fakes = FakeNode::fakes(1);
    let locker = rw(&fakes, |config| {
        config.retry(RetryPolicy {
            initial_delay: 2 * TTL,
            max_delay: 2 * TTL,
            jitter: 0.0,
            ..RetryPolicy::default()
        })
    });
    modify(&fakes, a_reader);
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes, "its place is at the gate", |stored| {
            stored.gate.len() == 1
        });
        let key = Key::parse("redguard:", "x", LockKind::ReadWrite).expect("a good name");
        let reader = scope.spawn(|| locker.acquire_read("x", &patient()));
        eventually("it queues", || {
            locker.nodes().engine().lock_table.waiting(&key) == 1
        });
        modify(&fakes, |stored| stored.readers.clear());
        drop(writer.join().expect("no panic").expect("well before that"));
        drop(reader.join().expect("no panic").expect("behind the writer"));
    });
}

#[test]
fn shutdown_ends_waiting_readers_and_waits_for_holding_ones() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let reader = locker.read("x", TTL).expect("free");
    modify(&fakes, a_gate);
    thread::scope(|scope| {
        let waiting = [0; 2].map(|_| scope.spawn(|| locker.read("x", TTL)));
        eventually("both ask", || fakes[0].count(Op::Acquire) >= 3);
        let nodes = locker.nodes().clone();
        let ended = scope.spawn(move || nodes.shutdown(Duration::from_secs(20)));
        for waiting in waiting {
            let closed = waiting.join().expect("no panic").expect_err("closed");
            assert_eq!(closed, Error::Closed);
        }
        drop(reader);
        assert!(ended.join().expect("no panic"));
    });
    all(&fakes, "no reader is left", |stored| {
        stored.readers.is_empty()
    });
}
