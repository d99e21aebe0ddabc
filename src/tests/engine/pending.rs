//! Pending releases over fake nodes: their number does not grow during an outage, and a failed
//! release of one key affects no other key.

use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);
/// The maximum number of pending releases for a node that is away: of leases alive when it went,
/// and of requests in flight then.
const FEW: u64 = 8;

/// Configures timeouts that detect hung nodes soon.
fn impatient(config: Config) -> Config {
    config.node_timeout(Duration::from_millis(100))
}

fn options() -> LockOptions {
    LockOptions::new(TTL)
}

/// Returns the number of pending releases for the third node.
fn waiting(locker: &RedisLocker) -> u64 {
    locker.nodes().engine().waiting(2)
}

/// Hands a lock off from thread to thread.
fn hand_on(locker: &RedisLocker) {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    let guard = locker.lock("handed", TTL).expect("a quorum is up");
                    guard.release().expect("ours");
                }
            });
        }
    });
}

fn acquire_and_release(locker: &RedisLocker) {
    for n in 0..250 {
        drop(locker.lock(&format!("own-{n}"), TTL).expect("free"));
        drop(locker.acquire_all(&["a", "b"], &options()).expect("free"));
    }
}

/// Attempts a lock that another owner holds on both nodes that are up, or on one of them.
fn fail(locker: &RedisLocker) {
    for _ in 0..250 {
        assert!(locker.try_lock("held", TTL).expect("a quorum").is_none());
        _ = locker.try_lock("half held", TTL);
    }
}

fn cancel(locker: &RedisLocker) {
    let held = locker.lock("waited for", TTL).expect("free");
    let rw = RedisRwLocker::new(locker.nodes());
    let written = rw.write("waited for", TTL).expect("free");
    let other = RedisRwLocker::new(locker.nodes());
    thread::scope(|scope| {
        for n in 0..100 {
            let (cancel, rw) = (CancelToken::new(), &other);
            let options = options().cancel_on(&cancel);
            let waits = scope.spawn(move || match n % 3 {
                0 => locker.acquire("waited for", &options).map(drop),
                1 => rw.acquire_read("waited for", &options).map(drop),
                _ => rw.acquire_write("waited for", &options).map(drop),
            });
            cancel.cancel();
            assert_eq!(waits.join().expect("no panic"), Err(Error::Cancelled));
        }
    });
    drop((held, written));
}

fn read_and_write(locker: &RedisLocker) {
    let rw = RedisRwLocker::new(locker.nodes());
    for _ in 0..250 {
        rw.read("x", TTL).expect("free").release().expect("ours");
        let written = rw.write("x", TTL).expect("free");
        written.downgrade().expect("ours").release().expect("ours");
    }
}

fn count_permits(locker: &RedisLocker) {
    let semaphore = RedisSemaphore::new(locker.nodes(), "x", 2).expect("good");
    for _ in 0..250 {
        let [one, two] = [(); 2].map(|()| semaphore.acquire(&options()).expect("free"));
        assert!(semaphore.try_acquire(&options()).expect("known").is_none());
        drop((one, two));
    }
}

/// Extends leases while nodes lose their keys.
fn extend(locker: &RedisLocker) {
    for _ in 0..50 {
        let guard = locker.lock("extended", TTL).expect("free");
        for _ in 0..10 {
            guard.extend(TTL).expect("ours");
        }
    }
}

#[test]
fn node_that_is_away_is_left_nothing_that_it_was_not_asked_for() {
    type Work = fn(&RedisLocker);
    let all: [(&str, Work); 7] = [
        ("handoffs", hand_on),
        ("acquires", acquire_and_release),
        ("failed attempts", fail),
        ("cancelled attempts", cancel),
        ("readers and writers", read_and_write),
        ("permits", count_permits),
        ("extensions", extend),
    ];
    for hangs in [false, true] {
        for (what, work) in all {
            let fakes = FakeNode::fakes(3);
            let locker = connected_locker(&fakes, impatient).expect("all are up");
            fakes[..2].iter().for_each(|fake| fake.seize("held", TTL));
            fakes[0].seize("half held", TTL);
            let late = match hangs {
                true => Some(fakes[2].delay(Op::Acquire)),
                false => {
                    fakes[2].set_fault(Fault::Down);
                    None
                }
            };
            // A request in flight detects that the node is away. It is sent while the lock is held.
            let before = locker.try_lock("before", TTL);
            let up = || locker.nodes().engine().nodes_up();
            eventually("it is suspect", || up() == 2);
            drop(before);
            work(&locker);
            let waiting = waiting(&locker);
            assert!(waiting <= FEW, "{what}, hung: {hangs}: {waiting} wait");
            fakes[2].set_fault(Fault::None);
            drop(late); // it serves what it has
            eventually("all is free there", || {
                fakes[2].token("before").is_none() && fakes[2].token("handed").is_none()
            });
        }
    }
}

#[test]
fn denied_release_affects_no_other_lock() {
    for fault in [Fault::DeniesOp(Op::Release), Fault::Fails(Op::Release)] {
        let fakes = FakeNode::fakes(1);
        let locker = connected_locker(&fakes, |config| config).expect("it is up");
        let kept = locker.lock("kept", TTL).expect("free");
        let guard = locker.lock("x", TTL).expect("free");
        fakes[0].set_fault(fault);
        let error = guard.release().expect_err("refused");
        assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
        for n in 0..20 {
            kept.extend(TTL).expect("it goes on");
            let other = locker.try_lock(&format!("other-{n}"), TTL);
            assert!(other.expect("the node replies").is_some());
        }
        assert_eq!(fakes[0].connects().len(), 1, "nothing was given up");
        fakes[0].set_fault(Fault::None);
        eventually("all is released", || {
            let other = |n: usize| fakes[0].token(&format!("other-{n}")).is_none();
            fakes[0].token("x").is_none() && (0..20).all(other)
        });
        assert_eq!(fakes[0].connects().len(), 1);
    }
}

#[test]
fn acquire_that_was_refused_before_it_ran_is_not_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |config| config).expect("all are up");
    let forbid = || Fault::DeniesOp(Op::Acquire);
    fakes.iter().for_each(|fake| fake.set_fault(forbid()));
    for _ in 0..20 {
        locker.try_lock("x", TTL).expect_err("denied");
    }
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    drop(locker.lock("y", TTL).expect("free"));
    eventually("that one is released", || {
        fakes.iter().all(|fake| fake.token("y").is_none())
    });
    for fake in &fakes {
        assert!(fake.count(Op::Release) <= 1, "of the other lock");
    }
}

/// Acquires a lock of each kind, sets `fault` on all nodes for its release, and checks the result.
fn release_meets(fault: &Fault, check: impl Fn(&str, Result<(), Error>)) {
    type Release = Box<dyn FnOnce() -> Result<(), Error>>;
    type Acquire = fn(&RedisLocker) -> Release;
    let exclusive: Acquire = |locker| {
        let guard = locker.lock("x", TTL).expect("free");
        Box::new(|| guard.release())
    };
    let several: Acquire = |locker| {
        let guard = locker.acquire_all(&["x", "y"], &options()).expect("free");
        Box::new(|| guard.release())
    };
    let reader: Acquire = |locker| {
        let rw = RedisRwLocker::new(locker.nodes());
        let guard = rw.read("x", TTL).expect("free");
        Box::new(|| guard.release())
    };
    let writer: Acquire = |locker| {
        let rw = RedisRwLocker::new(locker.nodes());
        let guard = rw.write("x", TTL).expect("free");
        Box::new(|| guard.release())
    };
    let permit: Acquire = |locker| {
        let semaphore = RedisSemaphore::new(locker.nodes(), "x", 1).expect("good");
        let permit = semaphore.acquire(&options()).expect("free");
        Box::new(|| permit.release())
    };
    for (kind, acquire) in [
        ("exclusive", exclusive),
        ("several", several),
        ("reader", reader),
        ("writer", writer),
        ("permit", permit),
    ] {
        let fakes = FakeNode::fakes(3);
        let locker = connected_locker(&fakes, |config| config).expect("all are up");
        let release = acquire(&locker);
        fakes.iter().for_each(|fake| fake.set_fault(fault.clone()));
        check(kind, release());
    }
}

#[test]
fn release_on_nodes_restarted_without_data_is_a_loss() {
    release_meets(&Fault::RestartsAt(Op::Release), |kind, released| {
        let error = released.expect_err(kind);
        assert!(error.is_lost(), "{kind}: {error}");
    });
}

#[test]
fn release_before_a_disconnect_succeeds() {
    release_meets(&Fault::DisconnectsAfter(Op::Release), |kind, released| {
        assert_eq!(released, Ok(()), "{kind}");
    });
}

#[test]
fn node_that_is_back_serves_before_the_releases_that_wait_for_it() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| config).expect("it is up");
    let guards: Vec<_> = (0..500)
        .map(|n| locker.lock(&format!("x-{n}"), TTL).expect("free"))
        .collect();
    fakes[0].set_fault(Fault::Down);
    eventually("it is suspect", || locker.nodes().engine().nodes_up() == 0);
    drop(guards);
    // The node is back, and replies to a release only when the test permits.
    let late = fakes[0].delay(Op::Release);
    eventually("it is up", || locker.nodes().engine().nodes_up() == 1);
    late.arrived();
    fakes[0].set_fault(Fault::None);
    late.go();
    let free = |n: &usize| {
        let stored = fakes[0].stored_lock(&format!("x-{n}"), LockKind::Exclusive);
        stored.owner.is_none()
    };
    eventually("all are released", || (0..500).all(|n| free(&n)));
    assert_eq!(fakes[0].count(Op::Release), 500);
}
