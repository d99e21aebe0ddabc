//! Read-write locks over fake nodes: what a quorum, a gate, a turn and a downgrade do when nodes differ.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, connected_locker, eventually, gate_entries_were_released,
};
use crate::tests::fake_node::store::{StoredLock, Turn};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);
/// Wide: only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(20);
/// The TTL of a lock whose end is waited for.
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

/// As long as it takes for who must get it, and short for who must not.
fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

fn impatient() -> LockOptions {
    LockOptions::new(TTL).wait_for(SHORT)
}

fn slot(fake: &FakeNode) -> StoredLock {
    fake.slot("x", LockKind::ReadWrite)
}

fn modify(fakes: &[Arc<FakeNode>], mut act: impl FnMut(&mut StoredLock)) {
    for fake in fakes {
        fake.modify("x", LockKind::ReadWrite, &mut act);
    }
}

/// A stranger writes, or reads, on these nodes.
fn a_writer(slot: &mut StoredLock) {
    slot.owner = Some(("stranger".into(), clock::now() + TTL));
}

fn a_reader(slot: &mut StoredLock) {
    slot.readers.insert("stranger".into(), clock::now() + TTL);
}

fn a_gate(slot: &mut StoredLock) {
    slot.gate.insert("stranger".into(), clock::now() + TTL);
}

fn nobody(slot: &mut StoredLock) {
    *slot = StoredLock::default();
}

/// The token of the one writer that waits. On a busy machine its place may have lapsed until it says again that it waits.
fn place(fake: &FakeNode) -> String {
    let mut place = None;
    eventually("a place at the gate", || {
        place = slot(fake).gate.into_keys().next();
        place.is_some()
    });
    place.expect("it was there")
}

/// A reader that was refused has left its mark, and no clock will decide whether it gets its turn.
fn a_quorum_is_asked_for_a_turn(fakes: &[Arc<FakeNode>]) {
    fakes.iter().for_each(|fake| fake.keep_markers(TTL));
    most(
        fakes,
        "it has left its mark on a quorum",
        |slot| matches!(slot.turn, Some((Turn::Asked, end)) if end > clock::now() + TTL / 2),
    );
}

fn all(fakes: &[Arc<FakeNode>], what: &str, holds: impl Fn(&StoredLock) -> bool) {
    eventually(what, || fakes.iter().all(|fake| holds(&slot(fake))));
}

/// Of a quorum: on a busy machine the last one may never be asked, as two have decided before.
fn most(fakes: &[Arc<FakeNode>], what: &str, holds: impl Fn(&StoredLock) -> bool) {
    let of = |fake: &&Arc<FakeNode>| holds(&slot(fake));
    eventually(what, || fakes.iter().filter(of).count() > fakes.len() / 2);
}

fn all_free(fakes: &[Arc<FakeNode>]) {
    all(fakes, "nobody holds or waits", |slot| {
        slot.owner.is_none() && slot.readers.is_empty() && slot.gate.is_empty()
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
        // The first has A, B and C.
        down(&fakes[3..], &[]);
        let options = patient();
        let (mut reader, mut writer) = (None, None);
        match read_first {
            true => reader = Some(lockers[0].acquire_read("x", &options).expect("a quorum")),
            false => writer = Some(lockers[0].acquire_write("x", &options).expect("a quorum")),
        }
        // The second has C, D and E.
        down(&fakes[..2], &fakes[3..]);
        let asked = |fake: &Arc<FakeNode>| fake.count(Op::Acquire);
        let before = [asked(&fakes[3]), asked(&fakes[4])];
        eventually("D and E are asked", || {
            let won = match read_first {
                true => matches!(lockers[1].try_write("x", TTL), Ok(Some(_))),
                false => matches!(lockers[1].try_read("x", TTL), Ok(Some(_))),
            };
            assert!(!won, "a reader beside a writer");
            asked(&fakes[3]) > before[0] && asked(&fakes[4]) > before[1]
        });
        drop((reader, writer));
    }
}

#[test]
fn a_minority_that_refuses_does_not_matter() {
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
        slot(&fakes[0]).owner.is_some(),
        "the stranger's is left alone"
    );
}

#[test]
fn readers_of_one_process_have_a_lease_each() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let first = locker.read("x", TTL).expect("free");
    let second = locker.read("x", TTL).expect("shared");
    all(&fakes, "both are there", |slot| slot.readers.len() == 2);
    first.release().expect("ours");
    all(&fakes, "one is left", |slot| slot.readers.len() == 1);
    assert!(second.is_held());
    assert!(locker.try_write("x", TTL).expect("no error").is_none());
    drop(second);
    all_free(&fakes);
}

#[test]
fn a_wait_that_ran_out_says_for_whom() {
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
    // Where nodes differ, what most of them say: here of any three that decide.
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
fn attempts_are_counted_apart_from_the_wait_and_the_ttl() {
    let fakes = FakeNode::fakes(1);
    let locker = rw(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(3),
            ..RetryPolicy::default()
        })
    });
    let options = LockOptions::new(TTL);
    let takes = || fakes[0].count(Op::Acquire);
    modify(&fakes, a_writer);
    let error = locker.acquire_read("x", &options).expect_err("held");
    assert!(matches!(error, Error::WriteLockTimeout { attempts: 3, .. }));
    assert_eq!(takes(), 3);
    let error = locker.acquire_write("x", &options).expect_err("held");
    assert!(matches!(error, Error::WriteLockHeld { attempts: 3, .. }));
    assert_eq!(takes(), 6);
    modify(&fakes, nobody);
    modify(&fakes, a_reader);
    let error = locker.acquire_write("x", &options).expect_err("held");
    assert!(matches!(error, Error::ReadersTimeout { attempts: 3, .. }));
    assert_eq!(takes(), 9);
    // A wait takes the place of the attempts.
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()).map(drop));
        eventually("it asks on", || takes() > 9 + 3);
        modify(&fakes, |slot| slot.readers.clear());
        writer.join().expect("no panic").expect("it is free");
    });
}

// The gate: writers get in.

#[test]
fn a_writer_that_waits_keeps_new_readers_out_and_gets_in() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let reader = other.read("x", TTL).expect("free");
    all(&fakes, "it reads everywhere", |slot| {
        slot.readers.len() == 1
    });
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes, "its place is at the gate", |slot| {
            slot.gate.len() == 1
        });
        // Not at any one moment: on a busy machine it may be late to say again that it waits.
        eventually("readers are turned away", || {
            other.try_read("x", TTL).expect("no error").is_none()
        });
        reader.extend(TTL).expect("who reads goes on");
        drop(reader);
        let writer = writer.join().expect("no panic").expect("it is its turn");
        all(&fakes, "the place is left", |slot| slot.gate.is_empty());
        writer.release().expect("ours");
    });
    assert!(other.try_read("x", TTL).expect("no error").is_some());
    all_free(&fakes);
}

#[test]
fn try_write_keeps_no_reader_out() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    modify(&fakes, a_reader);
    assert!(locker.try_write("x", TTL).expect("no error").is_none());
    assert!(locker.acquire_write("x", &at_once).is_err());
    modify(&fakes, |slot| slot.readers.clear());
    modify(&fakes, a_writer);
    assert!(locker.try_read("x", TTL).expect("no error").is_none());
    assert!(locker.acquire_read("x", &at_once).is_err());
    for fake in &fakes {
        assert!(slot(fake).gate.is_empty() && slot(fake).turn.is_none());
    }
}

#[test]
fn a_writer_that_gives_up_leaves_the_gate() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes, a_reader);
    let gives_up = || {
        let writer = locker.acquire_write("x", &impatient());
        writer.expect_err("it gives up");
        all(&fakes, "no place is left", |slot| slot.gate.is_empty());
        gate_entries_were_released(&fakes)
    };
    // Given back, and not just ended. A lane that is held up until a place has ended need not give it back: once is enough.
    assert!((0..20).any(|_| gives_up()));
}

#[test]
fn a_writer_that_finds_no_quorum_leaves_the_gate_and_takes_no_new_place() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    modify(&fakes, a_reader);
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes, "its place is at the gate", |slot| {
            slot.gate.len() == 1
        });
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Down));
        eventually("the place is left", || slot(&fakes[0]).gate.is_empty());
        let asked = fakes[0].count(Op::Acquire);
        eventually("it asks on", || fakes[0].count(Op::Acquire) > asked + 3);
        assert!(slot(&fakes[0]).gate.is_empty());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        modify(&fakes, |slot| slot.readers.clear());
        drop(writer.join().expect("no panic").expect("a quorum is back"));
    });
    all_free(&fakes);
}

#[test]
fn writers_that_split_the_nodes_undo_their_grants_and_keep_their_places() {
    let fakes = FakeNode::fakes(4);
    let locker = healthy(&fakes);
    // As a second writer does that was first on two of four nodes.
    modify(&fakes[..2], a_writer);
    thread::scope(|scope| {
        let writer = scope.spawn(|| locker.acquire_write("x", &patient()));
        all(&fakes[..2], "a place where it was refused", |slot| {
            slot.gate.len() == 1
        });
        all(&fakes[2..], "the grants are undone", |slot| {
            slot.owner.is_none()
        });
        let (first, asked) = (place(&fakes[0]), fakes[0].count(Op::Acquire));
        eventually("it asks on", || fakes[0].count(Op::Acquire) > asked + 3);
        assert_eq!(place(&fakes[0]), first, "one token for all its attempts");
        modify(&fakes[..2], |slot| slot.owner = None);
        let writer = writer.join().expect("no panic");
        drop(writer.expect("the other has undone its part"));
    });
    all_free(&fakes);
}

#[test]
fn two_writers_that_split_the_nodes_settle() {
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
fn a_refused_reader_gets_a_turn_when_the_writer_releases() {
    for on_drop in [OnDrop::Wait, OnDrop::Background] {
        let fakes = FakeNode::fakes(3);
        let locker = rw(&fakes, |config| config.on_drop(on_drop));
        let [other, third] = [healthy(&fakes), healthy(&fakes)];
        let writer = locker.write("x", TTL).expect("free");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let reader = other.acquire_read("x", &patient()).expect("it gets a turn");
                // So long writers are refused, and the gate does not count.
                drop(reader);
            });
            a_quorum_is_asked_for_a_turn(&fakes);
            modify(&fakes, a_gate);
            drop(writer);
            waiting
                .join()
                .expect("past the stranger's place at the gate");
        });
        most(&fakes, "it has its turn", |slot| {
            matches!(slot.turn, Some((Turn::Given, _)))
        });
        assert!(third.try_write("x", TTL).expect("no error").is_none());
        let late = third.try_read("x", TTL).expect("no error");
        assert!(late.is_some(), "past the gate, in the readers' turn");
        drop(late);
        modify(&fakes, |slot| slot.turn = None);
        assert!(third.try_read("x", TTL).expect("no error").is_none());
        eventually("no reader is left, so a writer gets in", || {
            third.try_write("x", TTL).expect("no error").is_some()
        });
    }
}

#[test]
fn the_undo_of_an_attempt_gives_no_turn() {
    let fakes = FakeNode::fakes(4);
    let locker = healthy(&fakes);
    modify(&fakes[..2], a_writer);
    modify(&fakes, |slot| {
        slot.turn = Some((Turn::Asked, clock::now() + TTL))
    });
    let refusing = [fakes[0].delay(Op::Acquire), fakes[1].delay(Op::Acquire)];
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_write("x", TTL));
        all(&fakes[2..], "these grant", |slot| slot.owner.is_some());
        refusing.iter().for_each(Rendezvous::arrived);
        // Only the first vote is held up, not its repeats.
        fakes[..2]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        refusing.iter().for_each(Rendezvous::go);
        let refused = tried.join().expect("it does not panic");
        assert!(refused.expect("no error").is_none());
    });
    all(&fakes[2..], "the grants are undone", |slot| {
        slot.owner.is_none()
    });
    for fake in &fakes {
        assert!(matches!(slot(fake).turn, Some((Turn::Asked, _))));
    }
}

#[test]
fn readers_of_one_process_that_wait_get_in_together() {
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
        // One asks for all, every 25 ms or so; eight would have asked eight times as often.
        let (more, most) = (more(), (clock::now() - began).as_millis() / 8 + 10);
        assert!(more as u128 <= most, "{more} of {most}");
        modify(&fakes, nobody);
    });
    all_free(&fakes);
}

#[test]
fn the_next_reader_asks_when_the_one_that_asked_for_all_gives_up() {
    let fakes = FakeNode::fakes(3);
    let locker = &healthy(&fakes);
    modify(&fakes, a_writer);
    thread::scope(|scope| {
        let first = scope.spawn(|| locker.acquire_read("x", &impatient()).is_err());
        eventually("it asks", || fakes[0].count(Op::Acquire) > 0);
        let long = LockOptions::new(TTL).wait_for(3 * LIMIT);
        let second = scope.spawn(move || locker.acquire_read("x", &long).map(drop));
        assert!(first.join().expect("no panic"));
        // Once it may have asked by itself, when it came.
        let asked = fakes[0].count(Op::Acquire);
        eventually("it asks", || fakes[0].count(Op::Acquire) > asked + 3);
        modify(&fakes, nobody);
        second.join().expect("no panic").expect("it is free");
    });
}

// Downgrade.

#[test]
fn a_downgrade_lets_readers_in_and_no_writer() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let writer = locker.write("x", TTL).expect("free");
    let left = writer.remaining();
    let reader = writer.downgrade().expect("ours");
    assert!(reader.remaining() <= left && reader.is_held());
    all(&fakes, "a reader everywhere", |slot| {
        slot.owner.is_none() && slot.readers.len() == 1
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
fn a_downgrade_gives_readers_that_wait_a_turn() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    let writer = locker.write("x", TTL).expect("free");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| other.acquire_read("x", &patient()));
        a_quorum_is_asked_for_a_turn(&fakes);
        modify(&fakes, a_gate);
        let reader = writer.downgrade().expect("ours");
        let beside = waiting.join().expect("no panic");
        drop(beside.expect("past the stranger's place at the gate"));
        drop(reader);
    });
}

#[test]
fn a_downgrade_that_most_nodes_did_not_hear_of_is_a_read_lock_all_the_same() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    for extends in [false, true] {
        let writer = locker.write("x", TTL).expect("free");
        all(&fakes, "it is everywhere", |slot| slot.owner.is_some());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Fails(Op::Downgrade)));
        let reader = writer.downgrade().expect("held as it was");
        assert!(slot(&fakes[1]).owner.is_some(), "in its old form");
        assert!(other.try_write("x", TTL).expect("no error").is_none());
        fakes[1..]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::None));
        if extends {
            reader.extend(TTL).expect("in both forms");
            all(&fakes, "the downgrade is made up for", |slot| {
                slot.readers.len() == 1
            });
            assert!(other.try_read("x", TTL).expect("no error").is_some());
        }
        reader.release().expect("in both forms");
        all_free(&fakes);
    }
}

#[test]
fn a_downgrade_of_a_lost_lock_says_so() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let writer = locker.write("x", TTL).expect("free");
    fakes.iter().for_each(|fake| fake.wipe());
    assert!(matches!(
        writer.downgrade().expect_err("lost"),
        Error::LockLost { .. }
    ));
    assert_eq!(locker.nodes().drop_failures(), 0, "it was told already");
    let brief = locker.write("x", BRIEF).expect("the slot is free again");
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
    all(&fakes, "it is everywhere", |slot| slot.readers.len() == 1);
    modify(&fakes[2..], |slot| {
        nobody(slot);
        a_gate(slot);
    });
    // By the next extension that hears of it in time: two of three are enough for one.
    eventually("it is put back past the gate", || {
        reader.extend(TTL).expect("two of three");
        slot(&fakes[2]).readers.len() == 1
    });
    drop(reader);
    modify(&fakes, nobody);
    let writer = locker.write("x", TTL).expect("free");
    all(&fakes, "it is everywhere", |slot| slot.owner.is_some());
    modify(&fakes[2..], |slot| {
        nobody(slot);
        slot.turn = Some((Turn::Given, clock::now() + TTL));
    });
    eventually("it is put back past the turn", || {
        writer.extend(TTL).expect("two of three");
        slot(&fakes[2]).owner.is_some()
    });
    modify(&fakes[2..], |slot| {
        nobody(slot);
        a_reader(slot);
    });
    let restored = || fakes[2].count(Op::Restore);
    let before = restored();
    eventually("a restore is tried", || {
        writer.extend(TTL).expect("two of three");
        restored() > before
    });
    assert!(slot(&fakes[2]).owner.is_none(), "not past a reader");
    writer.release().expect("two of three");
}

#[test]
fn a_writer_takes_the_slot_from_a_reader_that_hangs() {
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
fn pauses_are_short_enough_for_gate_and_turn_whatever_the_policy() {
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
        all(&fakes, "its place is at the gate", |slot| {
            slot.gate.len() == 1
        });
        let key = Key::parse("redguard:", "x", LockKind::ReadWrite).expect("a good name");
        let reader = scope.spawn(|| locker.acquire_read("x", &patient()));
        eventually("it queues", || {
            locker.nodes().engine().lock_table.waiting(&key) == 1
        });
        modify(&fakes, |slot| slot.readers.clear());
        drop(writer.join().expect("no panic").expect("well before that"));
        drop(reader.join().expect("no panic").expect("behind the writer"));
    });
}

#[test]
fn a_shutdown_ends_readers_that_wait_and_waits_for_those_that_read() {
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
    all(&fakes, "no reader is left", |slot| slot.readers.is_empty());
}
