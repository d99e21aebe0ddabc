//! Guarantees for programs that are written against `&dyn RwLocker`, whatever the implementation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use redguard::{
    CancelToken, Endpoint, Error, LocalRwLocker, LockOptions, Mode, ReadGuard, RedisRwLocker,
    RwLocker, WriteGuard,
};

use crate::locks::topologies::{Rig, suite};
use crate::support::fixtures::{LIMIT, TTL, at, connect_by, now};
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{eventually, unique_key};

suite! {
    Handle, local Handle::Local(LocalRwLocker::new()), redis connect_to;
    readers_share_and_a_writer_is_alone
    the_wait_of_each_side_ends_as_its_own_error
    a_writer_enters_when_the_last_reader_has_left
    a_waiting_reader_gets_in_when_the_writer_releases
    a_waiting_writer_keeps_new_readers_out_until_it_gives_up
    readers_behind_a_writer_enter_together
    readers_and_writers_never_meet
    a_downgrade_lets_readers_in_and_no_writer
    a_second_read_is_granted_while_no_writer_waits
    a_thread_that_writes_gets_nothing_more
    keys_are_independent
    unusable_names_and_ttls_are_refused
    an_extension_never_shortens
    a_fresh_guard_is_held
    every_way_out_of_a_scope_releases
    guards_move_and_show_no_token
    a_guard_outlives_its_locker
}

#[derive(Clone, Debug)]
enum Handle {
    Redis(RedisRwLocker),
    Local(LocalRwLocker),
}

fn connect_to(addresses: &[Endpoint], servers: &[Server]) -> Handle {
    let locker = connect_by(at(addresses.to_vec()), servers);
    Handle::Redis(RedisRwLocker::new(locker.nodes()))
}

impl Rig<Handle> {
    fn one(&self) -> &dyn RwLocker {
        self.handles[0].locker()
    }

    fn other(&self) -> &dyn RwLocker {
        self.handles[1].locker()
    }

    /// Another process, and another thread of the same process.
    fn contenders(&self) -> [&dyn RwLocker; 2] {
        [self.other(), self.one()]
    }

    fn is_local(&self) -> bool {
        matches!(self.handles[0], Handle::Local(_))
    }
}

impl Handle {
    fn locker(&self) -> &dyn RwLocker {
        match self {
            Handle::Redis(locker) => locker,
            Handle::Local(locker) => locker,
        }
    }
}

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

/// Options with a short limit, for waits that end without the lock.
const BRIEF: Duration = Duration::from_millis(250);

fn brief() -> LockOptions {
    LockOptions::new(TTL).wait_for(BRIEF)
}

/// Options for a lock that must become free.
fn read(locker: &dyn RwLocker, key: &str) -> ReadGuard {
    locker.acquire_read(key, &patient()).unwrap()
}

fn write(locker: &dyn RwLocker, key: &str) -> WriteGuard {
    locker.acquire_write(key, &patient()).unwrap()
}

fn may_read(locker: &dyn RwLocker, key: &str) -> bool {
    locker.try_read(key, TTL).unwrap().is_some()
}

fn may_write(locker: &dyn RwLocker, key: &str) -> bool {
    locker.try_write(key, TTL).unwrap().is_some()
}

/// Blocks until a writer waits in the process of `locker`, or in a process without readers: new
/// readers are then refused.
fn a_writer_waits(locker: &dyn RwLocker, key: &str) {
    eventually(LIMIT, "a writer waits", || !may_read(locker, key));
}

fn readers_share_and_a_writer_is_alone(rig: &Rig<Handle>) {
    let key = unique_key("share");
    let readers = [
        read(rig.one(), &key),
        read(rig.one(), &key),
        read(rig.other(), &key),
    ];
    for locker in rig.contenders() {
        assert!(!may_write(locker, &key));
        assert!(may_read(locker, &key));
    }
    drop(readers);
    let writer = write(rig.one(), &key);
    for locker in rig.contenders() {
        assert!(!may_write(locker, &key));
        assert!(!may_read(locker, &key));
    }
    writer.release().unwrap();
    assert!(may_read(rig.other(), &key));
    assert!(may_write(rig.other(), &key));
}

fn the_wait_of_each_side_ends_as_its_own_error(rig: &Rig<Handle>) {
    let key = unique_key("sides");
    let waited = |ended: Result<(), Error>, began| {
        let error = ended.unwrap_err();
        assert!(now().duration_since(began) >= BRIEF, "{error}");
        assert!(error.is_contended() && !error.is_unavailable(), "{error}");
        error
    };
    let reader = read(rig.one(), &key);
    for locker in rig.contenders() {
        let began = now();
        let error = waited(locker.acquire_write(&key, &brief()).map(drop), began);
        assert!(matches!(error, Error::ReadersTimeout { .. }), "{error}");
        assert!(locker.try_acquire_write(&key, &brief()).unwrap().is_none());
    }
    drop(reader);
    let _writer = write(rig.one(), &key);
    for locker in rig.contenders() {
        let began = now();
        let error = waited(locker.acquire_write(&key, &brief()).map(drop), began);
        assert!(matches!(error, Error::WriteLockHeld { .. }), "{error}");
        let began = now();
        let error = waited(locker.acquire_read(&key, &brief()).map(drop), began);
        assert!(matches!(error, Error::WriteLockTimeout { .. }), "{error}");
        assert!(locker.try_acquire_read(&key, &brief()).unwrap().is_none());
    }
}

fn a_writer_enters_when_the_last_reader_has_left(rig: &Rig<Handle>) {
    for locker in rig.contenders() {
        let key = unique_key("last");
        let [first, second] = [read(rig.one(), &key), read(rig.other(), &key)];
        thread::scope(|scope| {
            let writer = scope.spawn(|| write(locker, &key));
            a_writer_waits(locker, &key);
            first.release().unwrap();
            assert!(!may_write(rig.other(), &key));
            assert!(second.is_held() && !writer.is_finished());
            second.release().unwrap();
            let writer = writer.join().unwrap();
            assert!(!may_write(rig.other(), &key));
            drop(writer);
        });
    }
}

fn a_waiting_reader_gets_in_when_the_writer_releases(rig: &Rig<Handle>) {
    for locker in rig.contenders() {
        let key = unique_key("after");
        let writer = write(rig.one(), &key);
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(locker, &key));
            writer.release().unwrap();
            drop(reader.join().unwrap());
        });
    }
}

fn a_waiting_writer_keeps_new_readers_out_until_it_gives_up(rig: &Rig<Handle>) {
    for locker in rig.contenders() {
        let key = unique_key("gate");
        let reader = read(rig.one(), &key);
        thread::scope(|scope| {
            let token = CancelToken::new();
            let options = LockOptions::new(TTL).wait_for(4 * LIMIT).cancel_on(&token);
            let writer = scope.spawn(move || locker.acquire_write(&key, &options).map(drop));
            a_writer_waits(rig.one(), reader.key());
            reader.check().unwrap();
            reader.extend(TTL).unwrap();
            token.cancel();
            assert_eq!(writer.join().unwrap(), Err(Error::Cancelled));
        });
        // A release that a hung node has not received must not matter.
        eventually(LIMIT, "readers acquire the lock", || {
            may_read(rig.one(), reader.key())
        });
        assert!(may_read(rig.other(), reader.key()));
    }
}

fn readers_behind_a_writer_enter_together(rig: &Rig<Handle>) {
    let key = unique_key("together");
    let writer = write(rig.one(), &key);
    let all = Barrier::new(20);
    thread::scope(|scope| {
        for number in 0..20 {
            let locker = rig.contenders()[number % 2];
            let (all, key) = (&all, &key);
            scope.spawn(move || {
                let reader = read(locker, key);
                // No thread passes the barrier before all hold the lock.
                all.wait();
                reader.release().unwrap();
            });
        }
        writer.release().unwrap();
    });
    // Not with `try_write`, because the reader turn may last longer.
    drop(write(rig.one(), &key));
}

fn readers_and_writers_never_meet(rig: &Rig<Handle>) {
    let key = unique_key("never");
    let witness = Witness::new();
    thread::scope(|scope| {
        for number in 0..6 {
            let locker = rig.contenders()[number % 2];
            let (witness, key) = (&witness, &key);
            scope.spawn(move || {
                for round in 0..12 {
                    if (number + round) % 3 == 0 {
                        let guard = write(locker, key);
                        let inside = witness.enter(key);
                        thread::yield_now();
                        drop(inside);
                        guard.release().unwrap();
                    } else {
                        let guard = read(locker, key);
                        let inside = witness.enter_shared(key);
                        thread::yield_now();
                        drop(inside);
                        guard.release().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(witness.overlaps(), 0);
    assert_eq!(witness.entries(&key), 6 * 12);
}

fn a_downgrade_lets_readers_in_and_no_writer(rig: &Rig<Handle>) {
    let key = unique_key("down");
    let writer = write(rig.one(), &key);
    let left = writer.remaining();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| read(rig.other(), &key));
        let reader = writer.downgrade().unwrap();
        assert_eq!(reader.key(), key);
        assert!(reader.is_held() && reader.remaining() <= left);
        drop(waiting.join().unwrap());
        for locker in rig.contenders() {
            eventually(LIMIT, "a hung node hears of it", || may_read(locker, &key));
            assert!(!may_write(locker, &key));
        }
        reader.extend(TTL).unwrap();
        reader.release().unwrap();
    });
    drop(write(rig.other(), &key));
}

fn a_second_read_is_granted_while_no_writer_waits(rig: &Rig<Handle>) {
    let key = unique_key("twice");
    let first = read(rig.one(), &key);
    let second = rig.one().try_read(&key, TTL).unwrap().unwrap();
    first.release().unwrap();
    assert!(second.is_held());
    assert!(!may_write(rig.one(), &key));
}

fn a_thread_that_writes_gets_nothing_more(rig: &Rig<Handle>) {
    let key = unique_key("more");
    let writer = write(rig.one(), &key);
    assert!(!may_read(rig.one(), &key) && !may_write(rig.one(), &key));
    assert!(writer.is_held());
    let reader = writer.downgrade().unwrap();
    assert!(!may_write(rig.one(), &key), "no upgrade");
    drop(reader);
}

fn keys_are_independent(rig: &Rig<Handle>) {
    let (a, b) = (unique_key("a"), unique_key("b"));
    let _a = write(rig.one(), &a);
    for locker in rig.contenders() {
        assert!(may_write(locker, &b) && may_read(locker, &b));
    }
}

fn unusable_names_and_ttls_are_refused(rig: &Rig<Handle>) {
    let key = unique_key("bad");
    for name in ["", "x:writer", "x:readers", "x:gate", "x:turn", "x:fence"] {
        let errors = [
            rig.one().read(name, TTL).map(drop),
            rig.one().write(name, TTL).map(drop),
            rig.one().try_read(name, TTL).map(drop),
            rig.one().try_write(name, TTL).map(drop),
        ];
        let invalid = |ended: &Result<(), Error>| matches!(ended, Err(Error::InvalidKey { .. }));
        assert!(errors.iter().all(invalid), "{name:?}: {errors:?}");
    }
    for ttl in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
        let errors = [
            rig.one().read(&key, ttl).map(drop),
            rig.one().write(&key, ttl).map(drop),
        ];
        let invalid = |ended: &Result<(), Error>| matches!(ended, Err(Error::InvalidTtl { .. }));
        assert!(errors.iter().all(invalid), "{ttl:?}: {errors:?}");
    }
    for name in ["nul\0", "日本語 🔒", "{tag}x", "cr\r\nlf"] {
        let name = format!("{name}{}", unique_key("odd"));
        let writer = write(rig.one(), &name);
        assert_eq!(writer.key(), name);
        assert!(!may_read(rig.other(), &name));
    }
}

fn an_extension_never_shortens(rig: &Rig<Handle>) {
    let key = unique_key("extend");
    let check = |left: Duration, after: Duration| {
        assert!(after > TTL / 2 && after <= left, "{after:?} after {left:?}");
    };
    let reader = read(rig.one(), &key);
    let left = reader.remaining();
    reader.extend(Duration::from_secs(1)).unwrap();
    check(left, reader.remaining());
    reader.extend(2 * TTL).unwrap();
    assert!(reader.remaining() > TTL);
    reader.release().unwrap();
    let writer = write(rig.one(), &key);
    let left = writer.remaining();
    writer.extend(Duration::from_secs(1)).unwrap();
    check(left, writer.remaining());
    let unusable = writer.extend(Duration::ZERO).unwrap_err();
    assert!(matches!(unusable, Error::InvalidTtl { .. }));
    assert!(writer.is_held());
}

fn a_fresh_guard_is_held(rig: &Rig<Handle>) {
    let key = unique_key("fresh");
    let (mode, longest) = match rig.is_local() {
        true => (Mode::Local, Duration::MAX),
        false => (Mode::Quorum, TTL),
    };
    let reader = read(rig.one(), &key);
    assert!(reader.is_held() && reader.mode() == mode && reader.remaining() <= longest);
    reader.check().unwrap();
    drop(reader);
    let writer = write(rig.one(), &key);
    assert!(writer.is_held() && writer.mode() == mode && writer.remaining() <= longest);
    writer.check().unwrap();
}

fn every_way_out_of_a_scope_releases(rig: &Rig<Handle>) {
    let key = unique_key("out");
    let returns = || -> Result<(), Error> {
        let _reader = rig.one().read(&key, TTL)?;
        Err(Error::Closed)?;
        Ok(())
    };
    assert!(returns().is_err());
    assert!(may_write(rig.other(), &key));
    let panics = AssertUnwindSafe(|| {
        let _writer = write(rig.one(), &key);
        panic!("as the test wants it");
    });
    assert!(catch_unwind(panics).is_err());
    assert!(may_write(rig.other(), &key));
    _ = rig.one().write(&key, TTL).unwrap(); // at once
    assert!(may_read(rig.other(), &key));
}

fn guards_move_and_show_no_token(rig: &Rig<Handle>) {
    let key = unique_key("move");
    let writer = write(rig.one(), &key);
    let shown = format!("{writer:?} {:?}", rig.handles[0]);
    assert!(shown.contains("WriteGuard") && shown.contains(&key));
    let reader = thread::scope(|scope| scope.spawn(|| writer.downgrade()).join().unwrap());
    let reader = reader.unwrap();
    let debug = format!("{reader:?}");
    assert!(debug.contains("ReadGuard"));
    // A token has forty hexadecimal digits.
    for text in [shown, debug] {
        let mut words = text.split(|c: char| !c.is_ascii_hexdigit());
        assert!(words.all(|word| word.len() < 40), "{text}");
    }
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                reader.extend(TTL).unwrap();
                reader.check().unwrap();
            });
        }
    });
}

fn a_guard_outlives_its_locker(rig: &Rig<Handle>) {
    let key = unique_key("outlives");
    let locker = rig.handles[0].clone();
    let reader = read(locker.locker(), &key);
    drop(locker);
    assert!(reader.is_held() && !may_write(rig.other(), &key));
    reader.release().unwrap();
    assert!(may_write(rig.other(), &key));
}
