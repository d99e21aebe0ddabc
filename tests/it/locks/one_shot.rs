//! Callers that try a free lock once at the same moment: one of them acquires it (rule L1). Fakes
//! cannot show this for many callers with real servers and sockets.

use std::any::Any;
use std::sync::Barrier;
use std::thread;

use redguard::{
    Error, LockOptions, Locker, Nodes, RedisLocker, RedisRwLocker, RedisSemaphore, RwLocker,
    Semaphore,
};

use crate::support::fixtures::{TTL, config, nowhere, shared};
use crate::support::{servers, unique_key, wins_of_a_settled_vote};

type Guard = Box<dyn Any + Send>;
type Try = fn(&Nodes, &str) -> Result<Option<Guard>, Error>;

fn boxed<G: Send + 'static>(guard: Option<G>) -> Option<Guard> {
    guard.map(|guard| Box::new(guard) as Guard)
}

fn exclusive(nodes: &Nodes, key: &str) -> Result<Option<Guard>, Error> {
    RedisLocker::new(nodes).try_lock(key, TTL).map(boxed)
}

/// Returns how many callers acquire a lock that they try once: `each` callers on each of `nodes`.
fn winners(nodes: &[Nodes], each: usize, key: &str, acquire: Try) -> usize {
    let at_once = Barrier::new(nodes.len() * each);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..each)
            .flat_map(|_| nodes)
            .map(|nodes| {
                let at_once = &at_once;
                scope.spawn(move || {
                    at_once.wait();
                    acquire(nodes, key).expect("a quorum answers")
                })
            })
            .collect();
        let ended = callers.into_iter().map(|caller| caller.join().unwrap());
        let ended: Vec<Option<Guard>> = ended.collect();
        ended.iter().flatten().count()
    })
}

fn connect(count: usize, to: &[crate::support::servers::Server]) -> Vec<Nodes> {
    let nodes = (0..count).map(|_| Nodes::connect(config(to)).unwrap());
    nodes.collect()
}

#[test]
fn hundred_callers_that_try_once_have_one_winner() {
    let nodes = connect(25, shared());
    for _ in 0..5 {
        let key = unique_key("once");
        assert_eq!(winners(&nodes, 4, &key, exclusive), 1);
        nowhere(shared(), &key);
    }
}

#[test]
fn callers_of_every_kind_that_try_once_have_one_winner() {
    let kinds: [(&str, Try); 4] = [
        ("several keys", |nodes, key| {
            let (other, options) = (format!("{key}:2"), LockOptions::new(TTL));
            let locker = RedisLocker::new(nodes);
            locker.try_acquire_all(&[key, &other], &options).map(boxed)
        }),
        ("fenced", |nodes, key| {
            let options = LockOptions::new(TTL).fencing(true);
            let locker = RedisLocker::new(nodes);
            locker.try_acquire(key, &options).map(boxed)
        }),
        ("writers", |nodes, key| {
            let locker = RedisRwLocker::new(nodes);
            locker.try_write(key, TTL).map(boxed)
        }),
        ("permits", |nodes, key| {
            let semaphore = RedisSemaphore::new(nodes, key, 1)?;
            semaphore.try_acquire(&LockOptions::new(TTL)).map(boxed)
        }),
    ];
    let five = servers(5);
    let nodes = connect(8, &five);
    for (kind, acquire) in kinds {
        for _ in 0..10 {
            let key = unique_key("once");
            assert_eq!(winners(&nodes, 1, &key, acquire), 1, "{kind}");
        }
    }
    // The remaining nodes are a quorum.
    five[0].stop().unwrap();
    let winners = || winners(&nodes, 1, &unique_key("once"), exclusive);
    for _ in 0..10 {
        assert_eq!(wins_of_a_settled_vote(winners), 1, "one node hung");
    }
}
