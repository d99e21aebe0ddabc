//! Guarantees for programs that are written against `&dyn Locker`, whatever the implementation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use redguard::{CancelToken, Endpoint, Error, LocalLocker, LockOptions, Locker, Mode, RedisLocker};

use crate::locks::topologies::{Rig, suite};
use crate::support::fixtures::{LIMIT, TTL, acquire_lock, at, connect_by, now};
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{unique_key, wins_of_a_settled_vote};

suite! {
    Handle, local Handle::Local(LocalLocker::new()), redis connect_to;
    taken_released_and_taken_again
    handles_hold_a_lock_in_turn
    not_re_entrant
    keys_are_independent
    names_come_back_unchanged
    unusable_names_and_ttls_are_told_apart
    a_waiter_gets_it_when_the_holder_releases
    a_wait_ends_at_its_limit_and_not_before
    without_a_wait_one_attempt_is_made
    the_longest_wait_does_not_overflow
    a_wait_that_is_cancelled_ends_and_others_go_on
    fencing_tokens_increase_and_come_only_if_asked_for
    no_two_holders_overlap
    one_of_fifty_one_shot_contenders_wins
    every_way_out_of_a_scope_releases
    an_explicit_release_tells_that_it_worked
    an_extension_never_shortens
    an_extension_by_an_unusable_ttl_is_refused
    a_fresh_guard_is_held
    a_guard_moves_and_is_shared
    nothing_shows_a_token
    a_guard_outlives_its_locker
}

#[derive(Clone)]
enum Handle {
    Redis(RedisLocker),
    Local(LocalLocker),
}

fn connect_to(addresses: &[Endpoint], servers: &[Server]) -> Handle {
    Handle::Redis(connect_by(at(addresses.to_vec()), servers))
}

impl Rig<Handle> {
    fn one(&self) -> &dyn Locker {
        self.handles[0].locker()
    }

    fn other(&self) -> &dyn Locker {
        self.handles[1].locker()
    }

    /// The contender of `one`: another process, or another thread of the same process.
    fn contenders(&self) -> [&dyn Locker; 2] {
        [self.other(), self.one()]
    }

    /// A third process; for local lockers, another clone.
    fn newcomer(&self) -> Handle {
        match &self.handles[0] {
            Handle::Redis(_) => {
                Handle::Redis(RedisLocker::connect(at(self.addresses.clone())).unwrap())
            }
            local => local.clone(),
        }
    }

    fn mode(&self) -> Mode {
        match &self.handles[0] {
            Handle::Redis(_) => Mode::Quorum,
            Handle::Local(_) => Mode::Local,
        }
    }
}

impl Handle {
    fn locker(&self) -> &dyn Locker {
        match self {
            Handle::Redis(locker) => locker,
            Handle::Local(locker) => locker,
        }
    }
}

fn is_free(locker: &dyn Locker, key: &str) -> bool {
    locker.try_lock(key, TTL).unwrap().is_some()
}

fn taken_released_and_taken_again(rig: &Rig<Handle>) {
    let key = unique_key("again");
    for _ in 0..3 {
        let guard = rig.one().lock(&key, TTL).unwrap();
        guard.release().unwrap();
        drop(rig.one().try_lock(&key, TTL).unwrap().unwrap());
    }
}

fn handles_hold_a_lock_in_turn(rig: &Rig<Handle>) {
    let key = unique_key("turns");
    let held = acquire_lock(rig.one(), &key);
    assert!(!is_free(rig.other(), &key));
    held.release().unwrap();
    let held = rig.other().try_lock(&key, TTL).unwrap().unwrap();
    assert!(!is_free(rig.one(), &key));
    drop(held);
    assert!(is_free(rig.one(), &key));
}

fn not_re_entrant(rig: &Rig<Handle>) {
    let key = unique_key("again");
    let held = acquire_lock(rig.one(), &key);
    assert!(!is_free(rig.one(), &key));
    assert!(held.is_held());
    drop(held);
    assert!(is_free(rig.one(), &key));
}

fn keys_are_independent(rig: &Rig<Handle>) {
    let (a, b) = (unique_key("a"), unique_key("b"));
    let held = [acquire_lock(rig.one(), &a), acquire_lock(rig.one(), &b)];
    for locker in rig.contenders() {
        assert!(!is_free(locker, &a) && !is_free(locker, &b));
    }
    let [a_held, b_held] = held;
    a_held.release().unwrap();
    for locker in rig.contenders() {
        assert!(is_free(locker, &a) && !is_free(locker, &b));
    }
    assert!(b_held.is_held());
}

fn names_come_back_unchanged(rig: &Rig<Handle>) {
    for name in [
        "nul\0inside",
        "🔒",
        "日本語",
        "cr\r\nlf",
        "back\\slash",
        "{tag}x{",
        " ",
    ] {
        let key = unique_key(name);
        let guard = acquire_lock(rig.one(), &key);
        assert_eq!(guard.key(), key);
        assert!(!is_free(rig.other(), &key), "{name:?}");
        guard.release().unwrap();
        assert!(is_free(rig.other(), &key), "{name:?}");
    }
}

/// Zero, a TTL that the drift consumes, and a TTL that Redis does not accept.
const UNUSABLE: [Duration; 3] = [Duration::ZERO, Duration::from_millis(3), Duration::MAX];

fn unusable_names_and_ttls_are_told_apart(rig: &Rig<Handle>) {
    let long = "x".repeat(16 * 1024 + 1);
    for name in ["", "a:writer", "a:readers", "a:gate", "a:fence", &long] {
        let locked = rig.one().lock(name, TTL).unwrap_err();
        let tried = rig.one().try_lock(name, TTL).unwrap_err();
        assert!(matches!(locked, Error::InvalidKey { .. }), "{locked}");
        assert_eq!(tried, locked);
    }
    drop(acquire_lock(rig.one(), &long[1..]));
    let key = unique_key("ttl");
    for ttl in UNUSABLE {
        let locked = rig.one().lock(&key, ttl).unwrap_err();
        let tried = rig.one().try_lock(&key, ttl).unwrap_err();
        assert!(
            matches!(&locked, Error::InvalidTtl { ttl: given, .. } if *given == ttl),
            "{locked}"
        );
        assert_eq!(tried, locked);
    }
    assert!(is_free(rig.one(), &key));
}

fn a_waiter_gets_it_when_the_holder_releases(rig: &Rig<Handle>) {
    for waiter in rig.contenders() {
        let key = unique_key("waiter");
        let held = acquire_lock(rig.one(), &key);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                assert!(!is_free(waiter, &key));
                tell.send(()).unwrap();
                acquire_lock(waiter, &key)
            });
            told.recv_timeout(LIMIT).unwrap();
            held.release().unwrap();
            assert!(waiting.join().unwrap().is_held());
        });
        assert!(is_free(rig.one(), &key));
    }
}

fn a_wait_ends_at_its_limit_and_not_before(rig: &Rig<Handle>) {
    let limit = Duration::from_millis(200);
    let key = unique_key("limit");
    let held = acquire_lock(rig.one(), &key);
    for locker in rig.contenders() {
        let start = now();
        let error = locker
            .acquire(&key, &LockOptions::new(TTL).wait_for(limit))
            .unwrap_err();
        let took = start.elapsed();
        let Error::Contended {
            attempts,
            waited,
            remaining,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert!(error.is_contended() && !error.is_unavailable() && !error.is_lost());
        assert!(attempts >= 1, "{error}");
        assert!(
            limit <= waited && waited <= took && took < LIMIT,
            "{waited:?} {took:?}"
        );
        match rig.mode() {
            Mode::Local => assert_eq!(remaining, None),
            _ => assert!(remaining.is_some_and(|left| TTL - LIMIT < left && left <= TTL)),
        }
        for until in [false, true] {
            let start = now();
            let options = match until {
                true => LockOptions::new(TTL).wait_until(start + limit),
                false => LockOptions::new(TTL).wait_for(limit),
            };
            assert!(locker.try_acquire(&key, &options).unwrap().is_none());
            assert!((limit..LIMIT).contains(&start.elapsed()));
        }
    }
    assert!(held.is_held());
}

fn without_a_wait_one_attempt_is_made(rig: &Rig<Handle>) {
    let key = unique_key("at once");
    let past = now().checked_sub(Duration::from_secs(1)).unwrap();
    let options = LockOptions::new(TTL);
    for options in [
        options.clone().wait_for(Duration::ZERO),
        options.wait_until(past),
    ] {
        let held = rig.one().acquire(&key, &options).unwrap();
        for locker in rig.contenders() {
            assert!(locker.try_acquire(&key, &options).unwrap().is_none());
        }
        let error = rig.other().acquire(&key, &options).unwrap_err();
        assert!(
            matches!(error, Error::Contended { attempts: 1, .. }),
            "{error}"
        );
        // Behind a thread of its own process a waiter asks no node, so there may have been no
        // attempt.
        let error = rig.one().acquire(&key, &options).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Contended {
                    attempts: 0..=1,
                    ..
                }
            ),
            "{error}"
        );
        held.release().unwrap();
        drop(rig.other().try_acquire(&key, &options).unwrap().unwrap());
    }
}

fn the_longest_wait_does_not_overflow(rig: &Rig<Handle>) {
    let key = unique_key("unlimited");
    let for_ever = LockOptions::new(TTL).wait_for(Duration::MAX);
    for waiter in rig.contenders() {
        let held = rig.one().acquire(&key, &for_ever).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                assert!(!is_free(waiter, &key));
                tell.send(()).unwrap();
                waiter.try_acquire(&key, &for_ever).unwrap()
            });
            told.recv_timeout(LIMIT).unwrap();
            drop(held);
            assert!(waiting.join().unwrap().is_some_and(|guard| guard.is_held()));
        });
    }
}

fn a_wait_that_is_cancelled_ends_and_others_go_on(rig: &Rig<Handle>) {
    let key = unique_key("cancelled");
    let held = acquire_lock(rig.one(), &key);
    for waiter in rig.contenders() {
        let token = CancelToken::new();
        let options = LockOptions::new(TTL).cancel_on(&token);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                assert!(!is_free(waiter, &key));
                tell.send(()).unwrap();
                waiter.acquire(&key, &options).map(drop)
            });
            told.recv_timeout(LIMIT).unwrap();
            token.clone().cancel();
            assert_eq!(waiting.join().unwrap(), Err(Error::Cancelled));
        });
        // Cancellation comes before all else, also if the lock is free.
        let free = unique_key("free");
        let error = waiter.try_acquire(&free, &options).unwrap_err();
        assert_eq!(error, Error::Cancelled);
        assert!(!error.is_contended() && !error.is_unavailable() && !error.is_lost());
        assert!(is_free(waiter, &free));
    }
    assert!(held.is_held());
    held.release().unwrap();
    assert!(is_free(rig.other(), &key));
}

fn fencing_tokens_increase_and_come_only_if_asked_for(rig: &Rig<Handle>) {
    let key = unique_key("fenced");
    let fenced = LockOptions::new(TTL).wait_for(LIMIT).fencing(true);
    let mut last = None;
    for locker in [rig.one(), rig.other(), rig.other(), rig.one()] {
        let guard = locker.acquire(&key, &fenced).unwrap();
        assert!(guard.fencing_token() > last);
        last = guard.fencing_token();
        guard.extend(2 * TTL).unwrap();
        assert_eq!(guard.fencing_token(), last);
        guard.release().unwrap();
    }
    assert_eq!(acquire_lock(rig.one(), &key).fencing_token(), None);
}

fn no_two_holders_overlap(rig: &Rig<Handle>) {
    let key = unique_key("witnessed");
    let witness = Witness::new();
    // Long enough for the slowest machine, because it bounds a failure.
    let patient = LockOptions::new(TTL).wait_for(4 * LIMIT);
    thread::scope(|scope| {
        for locker in rig.contenders() {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let _guard = locker.acquire(&key, &patient).unwrap();
                        let _inside = witness.enter(&key);
                        thread::yield_now();
                    }
                });
            }
        }
    });
    assert_eq!((witness.entries(&key), witness.overlaps()), (200, 0));
}

fn one_of_fifty_one_shot_contenders_wins(rig: &Rig<Handle>) {
    let wins = wins_of_a_settled_vote(|| winners_of_fifty(rig));
    assert_eq!(wins, 1);
}

/// Returns how many of 50 callers that ask for a free lock at the same moment acquire it.
fn winners_of_fifty(rig: &Rig<Handle>) -> usize {
    let key = unique_key("fifty");
    let (start, done) = (Barrier::new(50), Barrier::new(50));
    let wins = AtomicUsize::new(0);
    thread::scope(|scope| {
        for locker in rig.contenders().repeat(25) {
            let (key, start, done, wins) = (&key, &start, &done, &wins);
            scope.spawn(move || {
                start.wait();
                let won = locker.try_lock(key, TTL);
                wins.fetch_add(usize::from(matches!(won, Ok(Some(_)))), Ordering::SeqCst);
                // No thread releases before all have tried.
                done.wait();
                won.unwrap();
            });
        }
    });
    drop(acquire_lock(rig.one(), &key));
    wins.into_inner()
}

fn every_way_out_of_a_scope_releases(rig: &Rig<Handle>) {
    let key = unique_key("scope");
    let by_return = |locker: &dyn Locker| {
        let _guard = locker.lock(&key, TTL)?;
        Ok::<(), Error>(())
    };
    let by_question_mark = |locker: &dyn Locker| {
        let _guard = locker.lock(&key, TTL)?;
        drop(locker.lock("", TTL)?);
        unreachable!("an empty name is an error")
    };
    let by_panic = |locker: &dyn Locker| {
        let _guard = locker.lock(&key, TTL).unwrap();
        panic!("as the test wants it")
    };
    by_return(rig.one()).unwrap();
    drop(rig.other().try_lock(&key, TTL).unwrap().unwrap());
    let left: Result<(), Error> = by_question_mark(rig.one());
    assert!(matches!(left, Err(Error::InvalidKey { .. })));
    drop(rig.other().try_lock(&key, TTL).unwrap().unwrap());
    let panicked = catch_unwind(AssertUnwindSafe(|| by_panic(rig.one())));
    assert!(panicked.is_err());
    drop(rig.other().try_lock(&key, TTL).unwrap().unwrap());
}

fn an_explicit_release_tells_that_it_worked(rig: &Rig<Handle>) {
    let key = unique_key("release");
    for locker in [rig.one(), rig.other(), rig.one()] {
        let guard = locker.try_lock(&key, TTL).unwrap().unwrap();
        assert_eq!(guard.release(), Ok(()));
    }
}

fn an_extension_never_shortens(rig: &Rig<Handle>) {
    let key = unique_key("extended");
    let guard = acquire_lock(rig.one(), &key);
    let before = guard.remaining();
    guard.extend(2 * TTL).unwrap();
    let extended = guard.remaining();
    match rig.mode() {
        Mode::Local => assert_eq!((before, extended), (Duration::MAX, Duration::MAX)),
        _ => assert!(before < TTL && TTL < extended && extended < 2 * TTL),
    }
    guard.extend(Duration::from_secs(1)).unwrap();
    assert!(guard.remaining() > TTL && guard.is_held());
    assert!(!is_free(rig.other(), &key));
    guard.release().unwrap();
    assert!(is_free(rig.other(), &key));
}

fn an_extension_by_an_unusable_ttl_is_refused(rig: &Rig<Handle>) {
    let guard = acquire_lock(rig.one(), &unique_key("extended"));
    for ttl in UNUSABLE {
        let refused = guard.extend(ttl);
        assert!(
            matches!(&refused, Err(Error::InvalidTtl { ttl: given, .. }) if *given == ttl),
            "{refused:?}"
        );
    }
    assert!(guard.is_held());
    guard.release().unwrap();
}

fn a_fresh_guard_is_held(rig: &Rig<Handle>) {
    let guard = acquire_lock(rig.one(), &unique_key("fresh"));
    assert!(guard.is_held());
    assert_eq!(guard.check(), Ok(()));
    assert_eq!(guard.mode(), rig.mode());
    let drift = TTL / 100 + Duration::from_millis(2);
    match rig.mode() {
        Mode::Local => assert_eq!(guard.remaining(), Duration::MAX),
        _ => assert!((TTL - LIMIT - drift..TTL - drift).contains(&guard.remaining())),
    }
}

fn a_guard_moves_and_is_shared(rig: &Rig<Handle>) {
    let key = unique_key("moved");
    let guard = acquire_lock(rig.one(), &key);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    guard.extend(TTL).unwrap();
                    guard.check().unwrap();
                    assert!(guard.is_held() && guard.remaining() > TTL / 2);
                }
            });
        }
    });
    thread::scope(|scope| scope.spawn(move || guard.release()).join().unwrap()).unwrap();
    assert!(is_free(rig.other(), &key));
}

fn nothing_shows_a_token(rig: &Rig<Handle>) {
    let key = unique_key("shown");
    let guard = acquire_lock(rig.one(), &key);
    let contended = rig
        .other()
        .acquire(&key, &LockOptions::new(TTL).wait_for(Duration::ZERO))
        .unwrap_err();
    let shown = format!(
        "{guard:#?} {:#?} {:#?} {contended} {contended:?}",
        rig.one(),
        rig.other()
    );
    assert!(
        shown.contains(&key) && shown.contains("Contended"),
        "{shown}"
    );
    // A token has forty hexadecimal digits; twelve in a row would reveal too much of it.
    let digits = shown.split(|c: char| !c.is_ascii_hexdigit());
    assert!(digits.map(str::len).all(|len| len < 12), "{shown}");
}

fn a_guard_outlives_its_locker(rig: &Rig<Handle>) {
    let key = unique_key("outlives");
    let handle = rig.newcomer();
    let guard = acquire_lock(handle.clone().locker(), &key);
    assert!(guard.is_held());
    drop(handle);
    guard.extend(TTL).unwrap();
    assert!(guard.is_held() && !is_free(rig.one(), &key));
    drop(guard);
    assert!(is_free(rig.one(), &key));
}
