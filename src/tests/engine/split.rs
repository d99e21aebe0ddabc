//! Split votes over fake nodes, forced by rendezvous: each caller is granted a free lock by some of
//! the nodes (L1).

use std::any::Any;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::config::builder::Config;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::{delay_acquires, healthy};
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, attempts, connected_locker, eventually, settings,
};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(300);

type Guard = Box<dyn Any + Send>;
type Try = fn(&RedisLocker) -> Result<Option<Guard>, Error>;

fn boxed<G: Send + 'static>(guard: Option<G>) -> Option<Guard> {
    guard.map(|guard| Box::new(guard) as Guard)
}

fn exclusive(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    locker.try_lock("x", TTL).map(boxed)
}

fn exclusive_for_less(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    locker.try_lock("x", TTL / 2).map(boxed)
}

fn fenced(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    let options = LockOptions::new(TTL).fencing(true);
    locker.try_acquire("x", &options).map(boxed)
}

fn several(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    let options = LockOptions::new(TTL);
    locker.try_acquire_all(&["x", "y"], &options).map(boxed)
}

fn writer(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    let locker = RedisRwLocker::new(locker.nodes());
    locker.try_write("x", TTL).map(boxed)
}

fn reader(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    let locker = RedisRwLocker::new(locker.nodes());
    locker.try_read("x", TTL).map(boxed)
}

fn permit(locker: &RedisLocker) -> Result<Option<Guard>, Error> {
    let semaphore = RedisSemaphore::new(locker.nodes(), "x", 1)?;
    semaphore.try_acquire(&LockOptions::new(TTL)).map(boxed)
}

/// Makes every caller ask all nodes before the first reply. Node `n` grants the caller `n` modulo
/// the number of callers. Returns how many callers acquired the lock, and drops their guards.
fn winners_of_a_split(fakes: &[Arc<FakeNode>], tries: &[Try]) -> usize {
    let lockers: Vec<RedisLocker> = tries.iter().map(|_| healthy(fakes)).collect();
    let served: Vec<usize> = fakes.iter().map(|fake| fake.count(Op::Acquire)).collect();
    thread::scope(|scope| {
        let (mut callers, mut held_up) = (Vec::new(), Vec::new());
        for (locker, acquire) in lockers.iter().zip(tries) {
            let nodes = fakes.iter().map(|fake| fake.delay(Op::Acquire));
            let nodes: Vec<Rendezvous> = nodes.collect();
            callers.push(scope.spawn(move || acquire(locker)));
            nodes.iter().for_each(Rendezvous::arrived);
            held_up.push(nodes);
        }
        // Only the first votes are delayed, not their repeats.
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        let granted = |node: usize| node % tries.len();
        for (node, fake) in fakes.iter().enumerate() {
            held_up[granted(node)][node].go();
            eventually("it grants", || fake.count(Op::Acquire) > served[node]);
        }
        for (caller, nodes) in held_up.iter().enumerate() {
            let refusing = nodes.iter().enumerate();
            let refusing = refusing.filter(|(node, _)| granted(*node) != caller);
            refusing.for_each(|(_, late)| late.go());
        }
        let ended = callers.into_iter().map(|caller| {
            let ended = caller.join().expect("no panic");
            ended.expect("a quorum replies")
        });
        // The guards are kept until all callers have ended.
        let guards: Vec<Guard> = ended.collect::<Vec<_>>().into_iter().flatten().collect();
        guards.len()
    })
}

fn nothing_is_left(fakes: &[Arc<FakeNode>]) {
    let families = [
        LockKind::Exclusive,
        LockKind::ReadWrite,
        LockKind::Semaphore,
    ];
    eventually("nothing is left", || {
        let slots = fakes.iter().flat_map(|fake| {
            let names = ["x", "y"].into_iter();
            names.flat_map(|name| families.map(|family| fake.stored_lock(name, family)))
        });
        slots.into_iter().all(|stored| {
            stored.owner.is_none() && stored.readers.is_empty() && stored.permits.is_empty()
        })
    });
}

#[test]
fn split_vote_of_any_kind_has_one_winner() {
    let kinds: [(&str, [Try; 3]); 7] = [
        ("exclusive", [exclusive; 3]),
        ("fenced", [fenced; 3]),
        ("several keys", [several; 3]),
        ("writers", [writer; 3]),
        ("permits", [permit; 3]),
        ("a reader among writers", [writer, reader, writer]),
        (
            "TTLs that differ",
            [exclusive, exclusive_for_less, exclusive],
        ),
    ];
    for nodes in [3, 5] {
        for (kind, tries) in kinds {
            let fakes = FakeNode::fakes(nodes);
            let winners = winners_of_a_split(&fakes, &tries);
            assert_eq!(winners, 1, "{kind}, {nodes} nodes");
            nothing_is_left(&fakes);
        }
    }
}

#[test]
fn split_vote_with_a_node_down_has_one_winner() {
    for (nodes, down) in [(3, 0), (3, 2), (5, 0), (5, 4)] {
        let mut fakes = FakeNode::fakes(nodes);
        fakes[down].set_fault(Fault::Down);
        let lockers = [healthy(&fakes), healthy(&fakes)];
        let down = fakes.remove(down);
        let first = &fakes[0];
        // Without rendezvous: half of the nodes that are up grant each caller.
        let late = delay_acquires(&fakes);
        thread::scope(|scope| {
            let one = scope.spawn(|| exclusive(&lockers[0]));
            late.iter().for_each(Rendezvous::arrived);
            let also = delay_acquires(&fakes);
            let other = scope.spawn(|| exclusive(&lockers[1]));
            also.iter().for_each(Rendezvous::arrived);
            fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
            for (node, fake) in fakes.iter().enumerate() {
                let granted = if node % 2 == 0 { &late } else { &also };
                granted[node].go();
                eventually("it grants", || fake.count(Op::Acquire) > 0);
            }
            for node in 0..fakes.len() {
                let refused = if node % 2 == 0 { &also } else { &late };
                refused[node].go();
            }
            let ended = [one, other].map(|caller| caller.join().expect("no panic"));
            let won = ended.map(|ended| ended.expect("a quorum replies"));
            assert_eq!(won.iter().flatten().count(), 1, "{nodes} nodes");
        });
        assert!(first.count(Op::Acquire) >= 2 && down.count(Op::Acquire) == 0);
        nothing_is_left(&fakes);
    }
}

#[test]
fn split_vote_over_a_leftover_of_the_first_node_has_one_winner() {
    let fakes = FakeNode::fakes(5);
    fakes[0].seize("x", 10 * TTL);
    let [one, other] = [healthy(&fakes), healthy(&fakes)];
    let late = delay_acquires(&fakes);
    thread::scope(|scope| {
        let one = scope.spawn(|| exclusive(&one));
        late.iter().for_each(Rendezvous::arrived);
        let also = delay_acquires(&fakes);
        let other = scope.spawn(|| exclusive(&other));
        also.iter().for_each(Rendezvous::arrived);
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        let order = |node: usize| match node < 3 {
            true => [&late[node], &also[node]],
            false => [&also[node], &late[node]],
        };
        for (node, fake) in fakes.iter().enumerate() {
            order(node)[0].go();
            eventually("the node replies", || fake.count(Op::Acquire) > 0);
        }
        (0..fakes.len()).for_each(|node| order(node)[1].go());
        let ended = [one, other].map(|caller| caller.join().expect("no panic"));
        let won = ended.map(|ended| ended.expect("a quorum replies"));
        assert_eq!(won.iter().flatten().count(), 1);
    });
}

#[test]
fn held_lock_missing_on_one_node_is_refused_immediately() {
    for forgot in 0..3 {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let holds = fakes.iter().enumerate().filter(|(node, _)| *node != forgot);
        // The lease is older than a vote takes.
        holds.for_each(|(_, fake)| fake.seize("x", TTL / 2));
        assert!(exclusive(&locker).expect("a quorum replied").is_none());
        assert_eq!(attempts(&fakes), 1);
        eventually("it is undone", || fakes[forgot].token("x").is_none());
    }
}

#[test]
fn limits_with_split_votes_are_kept_to_the_letter() {
    for max in 1..=3 {
        for forgot in 0..3 {
            let fakes = FakeNode::fakes(3);
            let delay = Duration::from_millis(40);
            let locker = connected_locker(&fakes, |config: Config| {
                config.retry(RetryPolicy {
                    max_attempts: Some(max),
                    initial_delay: delay,
                    max_delay: delay,
                    jitter: 0.0,
                    ..RetryPolicy::default()
                })
            });
            let locker = locker.expect("a quorum is up");
            let holds = fakes.iter().enumerate().filter(|(node, _)| *node != forgot);
            holds.for_each(|(_, fake)| fake.seize("x", 2 * TTL));
            let start = clock::now();
            let error = locker.lock("x", TTL).expect_err("held");
            let took = clock::now() - start;
            let Error::Contended { attempts, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(
                (attempts, locker.nodes().stats().attempts),
                (max, max.into())
            );
            assert!(took >= delay * (max - 1), "{took:?}");
            eventually("it is undone", || fakes[forgot].token("x").is_none());
        }
    }
}

#[test]
fn repeat_that_the_limit_of_the_split_vote_ends_is_contended() {
    let fakes = FakeNode::fakes(3);
    let settings = Settings {
        max_split: Duration::from_millis(50),
        ..settings(|config| config)
    };
    let configs: Vec<_> = fakes
        .iter()
        .map(|fake| fake.node_config(&settings))
        .collect();
    let nodes = Nodes::start(settings, &configs).expect("a quorum is up");
    let locker = RedisLocker::new(&nodes);
    eventually("all are up", || nodes.engine().nodes_up() == 3);
    // The caller has the grant of the second node, and so gives way to the holder of the first.
    fakes[0].seize("x", TTL);
    fakes[2].seize("x", TTL);
    let delays: Vec<Rendezvous> = fakes.iter().map(|fake| fake.delay(Op::Acquire)).collect();
    // Half of this TTL passes before the node timeout, so that the validity limits a round.
    let ttl = Duration::from_secs(8);
    let tried = thread::scope(|scope| {
        let tries = scope.spawn(|| locker.try_lock("x", ttl));
        delays.iter().for_each(Rendezvous::arrived);
        // Only the first votes are let through.
        delays.iter().for_each(Rendezvous::go);
        tries.join().expect("no panic")
    });
    assert!(matches!(tried, Ok(None)), "{tried:?}");
}

/// Two callers may have half of the other nodes each, and must not both wait for the silent one.
#[test]
fn leader_with_half_of_the_nodes_does_not_wait_for_a_silent_one() {
    let fakes = FakeNode::fakes(5);
    let locker = healthy(&fakes);
    let [silent, late] = [&fakes[0], &fakes[2]].map(|fake| fake.delay(Op::Acquire));
    // Other callers have asked at the same moment.
    fakes[2..].iter().for_each(|fake| fake.seize("x", TTL));
    thread::scope(|scope| {
        let leads = scope.spawn(|| locker.try_lock("x", TTL));
        late.arrived();
        late.go();
        late.arrived();
        eventually("the others refuse again", || {
            fakes[3..].iter().all(|fake| fake.count(Op::Acquire) == 2)
        });
        // The second caller of three gives way.
        fakes[2].free("x");
        fakes[2].set_fault(Fault::None);
        late.go();
        eventually("the last caller's nodes are asked again", || {
            fakes[3..].iter().all(|fake| fake.count(Op::Acquire) > 2)
        });
        fakes[0].set_fault(Fault::None);
        silent.go();
        // The last caller does not give way, so how this ends does not matter.
        drop(leads.join().expect("no panic"));
    });
}
