//! Fencing tokens on real nodes: they strictly increase for any sequence of holders and failing
//! nodes.

use std::sync::Mutex;
use std::thread;

use redguard::{LockOptions, Locker, RedisLocker, RedisRwLocker, RwLocker};

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, config, connect, connect_by, wait_until_it_grants,
};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

fn fenced() -> LockOptions {
    LockOptions::new(TTL).wait_for(2 * LIMIT).fencing(true)
}

fn fence(key: &str) -> String {
    format!("{{redguard:{key}}}:fence")
}

fn token(locker: &RedisLocker, key: &str) -> u64 {
    let guard = locker.acquire(key, &fenced()).unwrap();
    let token = guard.fencing_token().unwrap();
    guard.release().unwrap();
    token
}

/// Fencing tokens in the order of their holds.
#[derive(Default)]
struct Tokens(Mutex<Vec<u64>>);

impl Tokens {
    /// Records a token while the lock is held.
    fn note(&self, token: Option<u64>) {
        self.0.lock().unwrap().push(token.unwrap());
    }

    fn check(self, count: usize) {
        let tokens = self.0.into_inner().unwrap();
        assert_eq!(tokens.len(), count);
        let turned = tokens.windows(2).find(|pair| pair[0] >= pair[1]);
        assert_eq!(turned, None);
    }
}

/// Number of acquires by each of eight threads.
const ROUNDS: usize = 150;

/// Lets threads of two processes acquire two locks in turn while `disturb` runs, which receives a
/// function that waits for a number of exclusive holds.
fn contended(nodes: &[Server], disturb: impl FnOnce(&dyn Fn(usize))) {
    let lockers = [connect(nodes), connect(nodes)];
    let rw = lockers
        .each_ref()
        .map(|locker| RedisRwLocker::new(locker.nodes()));
    let (key, rw_key) = (unique_key("order"), unique_key("rw order"));
    let (tokens, rw_tokens) = (Tokens::default(), Tokens::default());
    thread::scope(|scope| {
        for number in 0..8 {
            let (locker, rw) = (&lockers[number % 2], &rw[number % 2]);
            let (key, rw_key, tokens, rw_tokens) = (&key, &rw_key, &tokens, &rw_tokens);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    if number < 4 {
                        let guard = locker.acquire(key, &fenced()).unwrap();
                        tokens.note(guard.fencing_token());
                        drop(guard);
                    } else {
                        let guard = rw.acquire_write(rw_key, &fenced()).unwrap();
                        rw_tokens.note(guard.fencing_token());
                        drop(guard);
                    }
                }
            });
        }
        let count = || tokens.0.lock().unwrap().len();
        disturb(&|locks| eventually(2 * LIMIT, "so many locks", || count() >= locks));
    });
    tokens.check(4 * ROUNDS);
    rw_tokens.check(4 * ROUNDS);
}

#[test]
fn tokens_increase_in_the_order_of_the_holders() {
    contended(&servers(3), |_| ());
}

#[test]
fn tokens_increase_while_a_node_hangs_and_one_dies_and_comes_back() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    contended(&nodes, |reached| {
        reached(100);
        nodes[0].stop().unwrap();
        reached(200);
        nodes[0].resume().unwrap();
        reached(300);
        nodes[1].kill();
        reached(400);
        nodes[1].restart().unwrap();
    });
}

#[test]
fn tokens_increase_while_nodes_lose_their_data_in_turn() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("forgets");
    let mut last = 0;
    for round in 0..9 {
        let token = token(&locker, &key);
        assert!(token > last, "{token} after {last}");
        last = token;
        match round % 2 {
            0 => ask::<()>(&nodes[round % 3], &["FLUSHALL"]),
            _ => {
                nodes[round % 3].restart_empty().unwrap();
                wait_until_it_grants(&locker, &nodes[round % 3]);
            }
        }
    }
}

#[test]
fn fence_counter_starts_at_the_server_time_and_lives_for_thirty_days() {
    let nodes = servers(1);
    let locker = connect(&nodes);
    let key = unique_key("begins");
    let (seconds, micros): (u64, u64) = ask(&nodes[0], &["TIME"]);
    let first = token(&locker, &key);
    assert!(first > seconds * 1_000_000 + micros);
    assert_eq!(token(&locker, &key), first + 1);
    assert_eq!(ask::<u64>(&nodes[0], &["GET", &fence(&key)]), first + 1);
    let left: u64 = ask(&nodes[0], &["PTTL", &fence(&key)]);
    let days = 30 * 24 * 3600 * 1000;
    assert!((days - 60_000..=days).contains(&left), "{left}");
    // A refused attempt consumes no token, and an unfenced lock has none.
    let held = acquire_lock(&locker, &key);
    assert_eq!(held.fencing_token(), None);
    let other = connect(&nodes);
    let at_once = LockOptions::new(TTL).fencing(true);
    assert!(other.try_acquire(&key, &at_once).unwrap().is_none());
    drop(held);
    assert_eq!(token(&other, &key), first + 2);
    // Lost scripts do no harm either.
    ask::<()>(&nodes[0], &["SCRIPT", "FLUSH"]);
    assert_eq!(token(&locker, &key), first + 3);
}

#[test]
fn fence_counter_of_another_type_refuses_the_lock() {
    let nodes = servers(3);
    let locker = connect_by(config(&nodes), &nodes);
    let key = unique_key("type");
    nodes
        .iter()
        .for_each(|node| ask(node, &["LPUSH", &fence(&key), "1"]));
    let at_once = LockOptions::new(TTL).fencing(true);
    let refused = locker.try_acquire(&key, &at_once);
    assert!(matches!(refused, Ok(None)), "{refused:?}");
    let unfenced = locker.try_lock(&key, TTL).unwrap();
    assert!(unfenced.is_some(), "nothing of it is left");
    drop(unfenced);
    // A counter that is not a number is a foreign value too.
    for node in &nodes {
        ask::<()>(node, &["DEL", &fence(&key)]);
        ask::<()>(node, &["SET", &fence(&key), "foreign"]);
    }
    let refused = locker.try_acquire(&key, &at_once);
    assert!(matches!(refused, Ok(None)), "{refused:?}");
    eventually(LIMIT, "no key of the lock is left", || {
        locker.try_lock(&key, TTL).unwrap().is_some()
    });
}
