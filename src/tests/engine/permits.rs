//! Semaphores over fake nodes: all permits can be acquired, and never more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::guard::SemaphorePermit;
use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::api::semaphore::{LocalSemaphore, RedisSemaphore, Semaphore};
use crate::api::watch::WatchOutcome;
use crate::config::builder::Config;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::kind::LockKind;
use crate::protocol::mode::Mode;
use crate::protocol::request::Op;
use crate::tests::engine::setup::{set_faults, slow_retries};
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, assert_no_timeout_elapsed, attempts, connected_locker, eventually,
    settings,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);

fn options() -> LockOptions {
    LockOptions::new(TTL)
}

fn nodes(fakes: &[Arc<FakeNode>], adjust: impl FnOnce(Config) -> Config) -> Nodes {
    let locker = connected_locker(fakes, adjust).expect("a quorum is up");
    locker.nodes().clone()
}

fn semaphore(fakes: &[Arc<FakeNode>], permits: u32) -> RedisSemaphore {
    let nodes = nodes(fakes, |config| config);
    RedisSemaphore::new(&nodes, "x", permits).expect("good")
}

/// Returns the number of permits that a node has granted.
fn held(fake: &FakeNode) -> usize {
    fake.stored_lock("x", LockKind::Semaphore).permits.len()
}

fn all_hold(fakes: &[Arc<FakeNode>], permits: usize) {
    eventually("all nodes hold so many", || {
        fakes.iter().all(|fake| held(fake) == permits)
    });
}

fn tried(semaphore: &RedisSemaphore) -> Option<SemaphorePermit> {
    semaphore.try_acquire(&options()).expect("a quorum replied")
}

#[test]
fn all_permits_can_be_held_and_no_more() {
    for count in [1, 3, 5] {
        let fakes = FakeNode::fakes(count);
        let both = [semaphore(&fakes, 3), semaphore(&fakes, 3)];
        let mut permits: Vec<SemaphorePermit> = Vec::new();
        for one in [&both[0], &both[1], &both[1]] {
            permits.push(tried(one).expect("one is left"));
            all_hold(&fakes, permits.len());
        }
        assert!(both.iter().all(|semaphore| tried(semaphore).is_none()));
        assert!(
            permits
                .iter()
                .all(|permit| permit.key() == "x" && permit.is_held())
        );
        permits.remove(1).release().expect("ours");
        all_hold(&fakes, 2);
        permits.push(tried(&both[0]).expect("one is free again"));
        drop(permits);
        all_hold(&fakes, 0);
    }
}

#[test]
fn refusal_leads_to_the_free_permit() {
    let fakes = FakeNode::fakes(3);
    let [ours, other] = [semaphore(&fakes, 1024), semaphore(&fakes, 1024)];
    let mut permits: Vec<SemaphorePermit> =
        (0..1023).map(|_| tried(&ours).expect("left")).collect();
    all_hold(&fakes, 1023);
    let acquires = || fakes.iter().map(|fake| fake.count(Op::Acquire)).max();
    let before = acquires();
    permits.push(tried(&other).expect("the last one"));
    assert!(acquires() <= before.map(|acquires| acquires + 2));
    all_hold(&fakes, 1024);
    assert!(tried(&other).is_none());
}

#[test]
fn one_node_down_is_tolerated_and_two_are_not() {
    let fakes = FakeNode::fakes(3);
    let semaphore = semaphore(&fakes, 4);
    fakes[1].set_fault(Fault::Down);
    eventually("it is known", || semaphore.nodes().engine().nodes_up() == 2);
    let permits: Vec<SemaphorePermit> = (0..4).map(|_| tried(&semaphore).expect("left")).collect();
    assert!(tried(&semaphore).is_none());
    fakes[2].set_fault(Fault::Down);
    eventually("it is known", || semaphore.nodes().engine().nodes_up() == 1);
    drop(permits);
    let error = semaphore.try_acquire(&options()).expect_err("no quorum");
    assert!(error.is_unavailable(), "{error}");
}

#[test]
fn other_total_is_refused_while_a_permit_is_held_and_accepted_otherwise() {
    let fakes = FakeNode::fakes(3);
    let [three, five] = [3, 5].map(|permits| semaphore(&fakes, permits));
    let permit = tried(&three).expect("free");
    all_hold(&fakes, 1);
    let error = five.acquire(&options()).expect_err("3 and not 5");
    let text = error.to_string();
    assert!(matches!(error, Error::InvalidConfig(_)), "{text}");
    assert!(text.contains("\"x\"") && text.contains('3') && text.contains('5'));
    // The process detects the mismatch between threads that share the nodes, without a request.
    let second = RedisSemaphore::new(three.nodes(), "x", 4).expect("good");
    let acquires = fakes[0].count(Op::Acquire);
    let error = second.try_acquire(&options()).expect_err("3 and not 4");
    assert!(
        error
            .to_string()
            .contains("4 permits requested, but it has 3"),
        "{error}"
    );
    assert_eq!(fakes[0].count(Op::Acquire), acquires);
    permit.release().expect("ours");
    all_hold(&fakes, 0);
    let permits: Vec<SemaphorePermit> = (0..5).map(|_| tried(&five).expect("left")).collect();
    all_hold(&fakes, 5);
    assert!(matches!(
        three.try_acquire(&options()),
        Err(Error::InvalidConfig(_))
    ));
    drop(permits);
}

#[test]
fn minority_with_another_total_counts_as_refusals() {
    let fakes = FakeNode::fakes(3);
    let alone = semaphore(&fakes[..1], 5);
    let odd = tried(&alone).expect("free");
    let three = semaphore(&fakes, 3);
    let permits: Vec<SemaphorePermit> = (0..3).map(|_| tried(&three).expect("left")).collect();
    assert!(tried(&three).is_none());
    drop(permits);
    // With another node down no quorum is reached, so no mismatch is reported.
    fakes[2].set_fault(Fault::Down);
    eventually("it is known", || three.nodes().engine().nodes_up() == 2);
    eventually("what was held is released", || held(&fakes[1]) == 0);
    assert!(tried(&three).is_none());
    drop(odd);
    eventually("it has ours again", || {
        tried(&three).is_some() && fakes[0].stored_lock("x", LockKind::Semaphore).count == 3
    });
}

#[test]
fn permit_is_extended_restored_and_lost_like_a_lock() {
    let fakes = FakeNode::fakes(3);
    let semaphore = semaphore(&fakes, 2);
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    let wanted = options().on_lost(move |lost| {
        assert_eq!(lost.key(), "x");
        count.fetch_add(1, Ordering::SeqCst);
    });
    let permit = semaphore.acquire(&wanted).expect("free");
    all_hold(&fakes, 1);
    fakes[0].wipe();
    permit.extend(2 * TTL).expect("a quorum has it");
    eventually("it is put back", || held(&fakes[0]) == 1);
    permit.check().expect("ours");
    assert_eq!(permit.mode(), Mode::Quorum);
    let watch = permit.watch();
    for fake in &fakes {
        fake.modify("x", LockKind::Semaphore, |stored| {
            for (token, _) in stored.permits.values_mut() {
                *token = "stranger".to_owned();
            }
        });
    }
    assert!(matches!(permit.extend(TTL), Err(Error::LockLost { .. })));
    assert_eq!(watch.wait_ended(TTL), WatchOutcome::Lost);
    assert!(matches!(permit.release(), Err(Error::LockLost { .. })));
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
    assert!(
        fakes.iter().all(|fake| held(fake) == 1),
        "the permit of the other owner"
    );
}

#[test]
fn permits_are_renewed_and_those_of_a_dead_holder_expire() {
    let fakes = FakeNode::fakes(3);
    let brief = Duration::from_millis(600);
    let [ours, other] = [semaphore(&fakes, 2), semaphore(&fakes, 2)];
    let renewed = ours.acquire(&LockOptions::new(brief).auto_renew(true));
    let renewed = renewed.expect("free");
    // The permit expires, as that of a killed process does.
    let dead = ours.acquire(&LockOptions::new(brief)).expect("free");
    std::mem::forget(dead);
    let next = other.acquire(&options().wait_for(Duration::from_secs(20)));
    let next = next.expect("the dead one's has ended");
    eventually("it was renewed", || {
        fakes.iter().any(|fake| fake.count(Op::Extend) > 0)
    });
    renewed.check().expect("it is renewed");
    assert!(tried(&other).is_none());
    drop(next);
}

#[test]
fn attempt_without_a_quorum_is_undone() {
    let fakes = FakeNode::fakes(3);
    let semaphore = semaphore(&fakes, 2);
    fakes[1..]
        .iter()
        .for_each(|fake| fake.set_fault(Fault::FailsAfterApplying(Op::Acquire)));
    match semaphore.try_acquire(&options()) {
        Err(Error::InsufficientQuorum { causes, .. }) => {
            assert!(
                causes
                    .iter()
                    .all(|of| matches!(of.failure, NodeFailure::ServerError(_)))
            );
        }
        other => panic!("{other:?}"),
    }
    all_hold(&fakes, 0);
}

#[test]
fn release_wakes_waiters_of_another_process_and_of_this_one() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] =
        [(); 2].map(|()| RedisSemaphore::new(&nodes(&fakes, slow_retries), "x", 2).expect("good"));
    let permits = [(); 2].map(|()| holder.acquire(&options()).expect("free"));
    all_hold(&fakes, 2);
    let began = clock::now();
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let permit = waiter.acquire(&options()).expect("it becomes free");
                served.fetch_add(1, Ordering::SeqCst);
                drop(permit);
            });
        }
        eventually("one listens", || fakes[0].subscribed("x") == 1);
        eventually("and has tried again", || attempts(&fakes) >= 4);
        drop(permits);
    });
    assert_eq!(served.load(Ordering::SeqCst), 6);
    assert_no_timeout_elapsed(began);
    all_hold(&fakes, 0);
}

#[test]
fn permit_waiters_of_a_process_acquire_in_order_behind_one_leader() {
    let fakes = FakeNode::fakes(1);
    let [holder, waiter] = [semaphore(&fakes, 3), semaphore(&fakes, 3)];
    let accepted = [(); 3].map(|()| tried(&holder).expect("free"));
    let mut accepted = Vec::from(accepted);
    let order = parking_lot::Mutex::new(Vec::new());
    let engine = waiter.nodes().engine();
    thread::scope(|scope| {
        for number in 0..5 {
            let (waiter, order) = (&waiter, &order);
            scope.spawn(move || match waiter.acquire(&options()) {
                Ok(permit) => {
                    order.lock().push(number);
                    std::mem::forget(permit);
                }
                Err(error) => assert_eq!(error, Error::Closed),
            });
            let key = crate::protocol::key::Key::parse("redguard:", "x", LockKind::Semaphore)
                .expect("good");
            eventually("it waits where it must", || {
                let (following, queued) = engine.lock_table.follower_counts(&key);
                (following, queued) == (number.min(2), usize::saturating_sub(number, 2))
            });
            if number == 0 {
                // The waiter has been refused by then, and later ones queue behind it.
                eventually("it listens", || fakes[0].subscribed("x") == 1);
            } else {
                // Behind other waiters no node is asked.
                assert!(tried(waiter).is_none());
            }
        }
        for served in 1..4 {
            drop(accepted.pop());
            eventually("the next has it", || order.lock().len() == served);
        }
        // The holders keep all permits, so the waiting threads must be ended.
        _ = waiter.nodes().shutdown(Duration::ZERO);
    });
    assert_eq!(*order.lock(), [0, 1, 2]);
}

#[test]
fn cancellation_ends_leader_followers_and_queued_waiters() {
    let fakes = FakeNode::fakes(1);
    let [holder, waiter] = [semaphore(&fakes, 2), semaphore(&fakes, 2)];
    let _taken = [(); 2].map(|()| tried(&holder).expect("free"));
    let cancel = CancelToken::new();
    let wanted = options().cancel_on(&cancel);
    thread::scope(|scope| {
        let waits: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| waiter.acquire(&wanted)))
            .collect();
        let key =
            crate::protocol::key::Key::parse("redguard:", "x", LockKind::Semaphore).expect("good");
        eventually("they wait", || {
            waiter.nodes().engine().lock_table.follower_counts(&key) == (1, 2)
        });
        cancel.cancel();
        for wait in waits {
            let ended = wait.join().expect("no panic");
            assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        }
    });
    all_hold(&fakes, 2);
}

#[test]
fn degraded_permits_are_counted_by_the_lock_table() {
    let fakes = FakeNode::fakes(3);
    fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let nodes = nodes(&fakes, |config| {
        config
            .allow_degraded(true)
            .connect_timeout(Duration::from_millis(200))
            .node_timeout(Duration::from_millis(200))
    });
    let semaphore = RedisSemaphore::new(&nodes, "x", 2).expect("good");
    let two = [(); 2].map(|()| tried(&semaphore).expect("free here"));
    let mut permits = Vec::from(two);
    assert!(permits.iter().all(|permit| permit.mode() == Mode::Local));
    assert!(tried(&semaphore).is_none());
    permits.pop();
    assert!(tried(&semaphore).is_some());
}

#[test]
fn degraded_permit_has_a_number_that_no_permit_of_the_process_has() {
    let fakes = FakeNode::fakes(3);
    let nodes = nodes(&fakes, |config| {
        config
            .allow_degraded(true)
            .connect_timeout(Duration::from_millis(200))
            .node_timeout(Duration::from_millis(200))
            .circuit_breaker(1, Duration::from_secs(60))
    });
    let semaphore = RedisSemaphore::new(&nodes, "x", 2).expect("good");
    let granted = semaphore.acquire(&options()).expect("free");
    fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let mut local = None;
    eventually("the outage is noticed", || {
        local = semaphore.try_acquire(&options()).ok().flatten();
        local.is_some()
    });
    let local = local.expect("checked");
    assert_eq!((granted.mode(), local.mode()), (Mode::Quorum, Mode::Local));
    // The nodes' number is drawn at random.
    let mut numbers = [granted.number(), local.number()];
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1]);
}

#[test]
fn semaphore_parameters_out_of_range_are_refused() {
    let fakes = FakeNode::fakes(1);
    let nodes = nodes(&fakes, |config| config);
    for permits in [0, 1025, u32::MAX] {
        for error in [
            RedisSemaphore::new(&nodes, "x", permits).expect_err("out of range"),
            LocalSemaphore::new(permits).expect_err("out of range"),
        ] {
            let text = error.to_string();
            assert!(matches!(error, Error::InvalidConfig(_)), "{text}");
            assert!(text.contains(&permits.to_string()) && text.contains("1024"));
        }
    }
    for name in ["", "x:permits", "x:fence"] {
        let error = RedisSemaphore::new(&nodes, name, 1).expect_err("no name");
        assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
    }
    let semaphore = RedisSemaphore::new(&nodes, "x", 1024).expect("good");
    let fenced = options().fencing(true);
    for error in [
        semaphore.acquire(&fenced).expect_err("no fencing"),
        LocalSemaphore::new(1)
            .expect("good")
            .try_acquire(&fenced)
            .expect_err("no fencing"),
    ] {
        assert!(matches!(error, Error::InvalidConfig(_)), "{error}");
    }
    assert_eq!(fakes[0].count(Op::Acquire), 0);
    // A lock of the same name is independent of the semaphore.
    let lock = crate::api::redis_locker::RedisLocker::new(&nodes)
        .lock("x", TTL)
        .expect("free");
    assert!(tried(&semaphore).is_some());
    drop(lock);
}

#[test]
fn permits_of_one_process_are_first_come_first_served() {
    let semaphore = LocalSemaphore::new(2).expect("good");
    let permits = [(); 2].map(|()| semaphore.acquire(&options()).expect("free"));
    let order = parking_lot::Mutex::new(Vec::new());
    let key = crate::protocol::key::Key::parse("", "semaphore", LockKind::Semaphore).expect("good");
    thread::scope(|scope| {
        for number in 0..4 {
            let (semaphore, order) = (&semaphore, &order);
            scope.spawn(move || {
                let permit = semaphore.acquire(&options()).expect("it becomes free");
                order.lock().push(number);
                eventually("it is seen", || order.lock().len() > number);
                drop(permit);
            });
            eventually("it queues", || {
                semaphore.lock_table().waiting(&key) == number + 1
            });
        }
        let [first, second] = permits;
        first.release().expect("ours");
        eventually("they are served", || order.lock().len() == 4);
        drop(second);
    });
    assert_eq!(*order.lock(), [0, 1, 2, 3]);
}

#[test]
fn each_permit_has_a_number_of_its_own() {
    let fakes = FakeNode::fakes(3);
    let nodes = nodes(&fakes, |config| config);
    let options = options();
    let semaphores: [Box<dyn Semaphore>; 2] = [
        Box::new(RedisSemaphore::new(&nodes, "numbered", 3).unwrap()),
        Box::new(LocalSemaphore::new(3).unwrap()),
    ];
    for semaphore in semaphores {
        let acquire = || semaphore.acquire(&options).unwrap();
        let mut permits = vec![acquire(), acquire(), acquire()];
        let freed = permits.remove(1);
        let number = freed.number();
        freed.release().unwrap();
        permits.push(acquire());
        assert_eq!(permits[2].number(), number, "the only free one");
        let mut numbers: Vec<u32> = permits.iter().map(SemaphorePermit::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    }
}

#[test]
fn permit_reported_free_is_tried_when_the_split_vote_for_another_ends_without_replies() {
    let fakes = FakeNode::fakes(3);
    let settings = Settings {
        max_split: Duration::from_millis(50),
        ..settings(|config| config)
    };
    let configs = fakes.iter().map(|fake| fake.node_config(&settings));
    let configs: Vec<_> = configs.collect();
    let nodes = Nodes::start(settings, &configs).expect("a quorum is up");
    eventually("all are up", || nodes.engine().nodes_up() == 3);
    let semaphore = RedisSemaphore::new(&nodes, "x", 2).expect("good");
    let late = [1, 2].map(|node: usize| fakes[node].delay(Op::Acquire));
    let tried = thread::scope(|scope| {
        let tries = scope.spawn(|| tried(&semaphore));
        late.iter().for_each(Rendezvous::arrived);
        eventually("the first node grants", || held(&fakes[0]) == 1);
        // A stranger holds the permit that was drawn, by the other nodes.
        let drawn = fakes[0].stored_lock("x", LockKind::Semaphore).permits;
        for fake in &fakes[1..] {
            fake.modify("x", LockKind::Semaphore, |stored| {
                stored.count = 2;
                let theirs = drawn.keys().map(|index| (*index, clock::now() + TTL));
                let theirs = theirs.map(|(index, end)| (index, ("stranger".to_owned(), end)));
                stored.permits.extend(theirs);
            });
        }
        late.iter().for_each(Rendezvous::go);
        // Asked again, they do not reply before the time for split votes ends.
        late.iter().for_each(Rendezvous::arrived);
        eventually("the grant is undone", || fakes[0].count(Op::Release) > 0);
        set_faults(&fakes, &Fault::None);
        late.iter().for_each(Rendezvous::go);
        tries.join().expect("no panic")
    });
    assert!(tried.is_some(), "the other permit is free on all nodes");
}
