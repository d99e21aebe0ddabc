//! Shutdown over fake nodes: waits, pending acquires and held locks.

use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::protocol::request::Op;
use crate::telemetry::observer::Observer;
use crate::tests::engine::setup::{SHORT, TTL, all_free, healthy, holders, impatient};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;

/// Records what this thread logs about a shutdown that left something.
fn lines_of_shutdown() -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lines);
    on_log_line(move |line| {
        if line.contains("at shutdown") {
            seen.lock().push(line.to_owned());
        }
    });
    lines
}

#[test]
fn shutdown_ends_waits_and_keeps_held_locks() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let closed = |tried: Result<_, Error>| assert_eq!(tried.err(), Some(Error::Closed));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.lock("x", TTL).map(drop));
        fakes[0].set_fault(Fault::Refuses);
        let asking = scope.spawn(|| locker.lock("y", TTL).map(drop));
        eventually("it asks", || fakes[0].count(Op::Acquire) > 1);
        assert!(!locker.nodes().shutdown(Duration::from_millis(20)));
        closed(waiting.join().expect("no panic"));
        closed(asking.join().expect("no panic"));
    });
    closed(locker.try_lock("z", TTL).map(drop));
    assert!(fakes[0].token("x").is_some(), "left to its TTL");
    assert!(!guard.is_held());
    assert_eq!(guard.watch().loss_reason(), Some(LossReason::ShutDown));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    _ = locker.nodes().shutdown(Duration::ZERO);
}

#[test]
fn shutdown_undoes_a_pending_acquire() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].delay(Op::Acquire);
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let asking = scope.spawn(|| locker.lock("x", TTL).map(drop));
        late.arrived();
        let ending = scope.spawn(move || nodes.shutdown(Duration::ZERO));
        eventually("it is closed", || {
            locker.nodes().engine().lock_table.is_closed()
        });
        late.go();
        assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
        assert!(ending.join().expect("no panic"));
    });
    assert_eq!(holders(&fakes, "x"), 0, "a key without a holder is left");
}

#[test]
fn shutdown_waits_for_guards() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let ending = scope.spawn(move || nodes.shutdown(Duration::from_secs(20)));
        eventually("it is closed", || {
            matches!(locker.try_lock("y", TTL), Err(Error::Closed))
        });
        guard.release().expect("ours");
        assert!(ending.join().expect("no panic"));
    });
}

#[test]
fn shutdown_does_not_wait_for_a_connect_that_hangs() {
    let fakes = FakeNode::fakes(3);
    let hanging = fakes[2].delay_connect();
    let patient = |config: Config| {
        let limit = Duration::from_secs(30);
        config.node_timeout(limit).connect_timeout(limit)
    };
    let locker = connected_locker(&fakes, patient).expect("a quorum is up");
    hanging.arrived();
    locker
        .lock("x", TTL)
        .expect("free")
        .release()
        .expect("ours");
    let start = clock::now();
    assert!(locker.nodes().shutdown(Duration::ZERO));
    drop(locker);
    assert!(clock::now() - start < Duration::from_secs(15));
    assert_eq!(holders(&fakes, "x"), 0);
    hanging.go();
}

#[test]
fn request_of_an_operator_that_meets_a_shutdown_without_a_quorum_is_closed() {
    for op in [Op::Inspect, Op::ForceRelease] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        fakes[..2]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Down));
        eventually("it is seen", || locker.nodes().engine().nodes_up() == 1);
        let ask = || match op {
            Op::Inspect => locker.holder("x").map(drop),
            _ => locker.force_release("x").map(drop),
        };
        let unavailable = ask().expect_err("no quorum");
        assert!(unavailable.is_unavailable(), "{unavailable:?}");
        let late = fakes[2].delay(op);
        thread::scope(|scope| {
            let asking = scope.spawn(ask);
            late.arrived();
            let ending = scope.spawn(|| locker.nodes().shutdown(Duration::ZERO));
            let lock_table = &locker.nodes().engine().lock_table;
            eventually("it is closed", || lock_table.is_closed());
            late.go();
            assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
            assert!(ending.join().expect("no panic"));
        });
    }
}

#[test]
fn guard_outlives_its_locker() {
    let fakes = FakeNode::fakes(3);
    let guard = healthy(&fakes).lock("x", TTL).expect("free");
    assert!(guard.is_held());
    drop(guard);
    assert_eq!(holders(&fakes, "x"), 0, "the last handle drains the queues");
}

#[test]
fn worker_that_does_not_end_at_shutdown_is_named_with_its_node() {
    let fakes = FakeNode::fakes(3);
    let adjust = |config| impatient(config).pool_size(2).on_drop(OnDrop::Background);
    let locker = connected_locker(&fakes, adjust).expect("a quorum is up");
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all have it", || holders(&fakes, "x") == 3);
    let hung = fakes[1].delay(Op::Release);
    drop(guard);
    hung.arrived();
    let lines = lines_of_shutdown();
    assert!(!locker.nodes().shutdown(Duration::ZERO));
    let [line] = &lines.lock()[..] else {
        panic!("{lines:?}")
    };
    let start = "fake-0, fake-1, fake-2: not ended at shutdown: thread redguard-1.";
    assert!(line.starts_with(start), "{line}");
    assert!(line.contains(" (fake-1)"), "{line}");
    assert!(!line.contains("redguard-0"), "{line}");
    assert!(!line.contains("redguard-2"), "{line}");
    fakes[1].set_fault(Fault::None);
    hung.go();
    all_free(&fakes, "x");
}

#[test]
fn callback_that_does_not_end_at_shutdown_is_named() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, impatient).expect("a quorum is up");
    let (begin, begun) = channel::<()>();
    let (end, ended) = channel::<()>();
    let ended = Mutex::new(ended);
    let options = LockOptions::new(TTL).on_lost(move |_| {
        _ = begin.send(());
        _ = ended.lock().recv();
    });
    let guard = locker.acquire("x", &options).expect("free");
    let lines = lines_of_shutdown();
    // The guard is lost by the shutdown, so its callback runs.
    assert!(!locker.nodes().shutdown(Duration::ZERO));
    begun.recv().expect("the callback began");
    let [line] = &lines.lock()[..] else {
        panic!("{lines:?}")
    };
    let text = "not ended at shutdown: thread redguard-notify (a callback runs)";
    assert!(line.ends_with(text), "{line}");
    drop(end);
    drop(guard);
}

/// Blocks the renewal thread.
struct StopsRenewals(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);

impl Observer for StopsRenewals {
    fn renewed(&self, _: &str) {
        _ = self.0.send(());
        _ = self.1.lock().recv();
    }
}

#[test]
fn renewal_that_does_not_end_at_shutdown_is_named() {
    let fakes = FakeNode::fakes(1);
    let (begin, begun) = channel::<()>();
    let (end, ended) = channel::<()>();
    let observer = Arc::new(StopsRenewals(begin, Mutex::new(ended)));
    let adjust = |config: Config| impatient(config).observer(observer);
    let locker = connected_locker(&fakes, adjust).expect("it is up");
    let options = LockOptions::new(2 * SHORT).auto_renew(true);
    let guard = locker.acquire("x", &options).expect("free");
    begun.recv().expect("a renewal");
    drop(guard);
    let lines = lines_of_shutdown();
    assert!(!locker.nodes().shutdown(Duration::ZERO));
    let [line] = &lines.lock()[..] else {
        panic!("{lines:?}")
    };
    let text = "fake-0: not ended at shutdown: thread redguard-renewal";
    assert_eq!(line, text);
    drop(end);
}

#[test]
fn acquire_that_is_pending_after_the_shutdown_is_named() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let (go, wait) = channel::<()>();
    let (grant, granted) = channel::<()>();
    thread::scope(|scope| {
        let locker = &locker;
        let asking = scope.spawn(move || {
            // Stops the caller between the verdict and the guard.
            on_log_line(move |line| {
                if line.contains("Granted") {
                    _ = grant.send(());
                    _ = wait.recv();
                }
            });
            locker.lock("x", TTL).map(drop)
        });
        granted.recv().expect("the node granted");
        let lines = lines_of_shutdown();
        assert!(!locker.nodes().shutdown(Duration::ZERO));
        assert_eq!(
            lines.lock()[..],
            ["fake-0: not ended at shutdown: acquires of 1 key: \"x\""]
        );
        drop(go);
        assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
    });
}

#[test]
fn shutdown_with_a_logger_that_panics_ends_all_threads() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    on_log_line(|line| assert!(!line.contains("shut down"), "as the test wants it"));
    assert!(!locker.nodes().shutdown(Duration::ZERO), "a guard was left");
    assert_eq!(guard.watch().loss_reason(), Some(LossReason::ShutDown));
    assert!(
        locker.nodes().shutdown(Duration::ZERO),
        "all threads have ended"
    );
}
