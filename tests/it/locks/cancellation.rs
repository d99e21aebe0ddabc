//! Waits that are cancelled on real nodes at any moment: they end, and leave no key.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use redguard::{
    CancelToken, Error, LockOptions, Locker, RedisLocker, RedisRwLocker, RetryPolicy, RwLocker,
};

use crate::support::fixtures::{LIMIT, TTL, ask, config, connect_by, now, store_foreign_token};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

const CANCELS: usize = 10_000;
const THREADS: usize = 8;

#[test]
fn ten_thousand_cancels_at_random_moments_leave_no_key() {
    let nodes = servers(3);
    // Two processes contend for three locks.
    let lockers = [(); 2].map(|()| connect_by(config(&nodes), &nodes));
    let key = unique_key("random");
    let (cancelled, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ended_after = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..THREADS {
            let locker = &lockers[number % 2];
            let rw = RedisRwLocker::new(locker.nodes());
            let (key, cancelled, taken) = (&key, &cancelled, &taken);
            let ended_after = &ended_after;
            let (hand, tokens) = mpsc::channel::<(CancelToken, Arc<OnceLock<Instant>>)>();
            scope.spawn(move || {
                for (token, cancelled_at) in tokens {
                    // Half of the waits may be long enough for a lock on a busy machine.
                    let most = if rand::random() { 600 } else { 20_000 };
                    thread::park_timeout(Duration::from_micros(rand::random_range(0..most)));
                    cancelled_at.get_or_init(now);
                    token.cancel();
                }
            });
            scope.spawn(move || {
                let mut after = Vec::new();
                for round in 0..CANCELS / THREADS {
                    let token = CancelToken::new();
                    let options = LockOptions::new(TTL).wait_for(LIMIT).cancel_on(&token);
                    let cancelled_at = Arc::new(OnceLock::new());
                    hand.send((token, Arc::clone(&cancelled_at))).unwrap();
                    let ended = match round % 3 {
                        0 => locker.acquire(key, &options).map(drop),
                        1 => rw.acquire_read(key, &options).map(drop),
                        _ => rw.acquire_write(key, &options).map(drop),
                    };
                    let counter = match ended {
                        Ok(()) => taken,
                        Err(Error::Cancelled) => {
                            after.push(cancelled_at.get().unwrap().elapsed());
                            cancelled
                        }
                        Err(error) => panic!("{error}"),
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                ended_after.lock().unwrap().append(&mut after);
            });
        }
    });
    let (cancelled, taken) = (cancelled.into_inner(), taken.into_inner());
    let mut ended_after = ended_after.into_inner().unwrap();
    ended_after.sort();
    let at = |part: usize| ended_after[(ended_after.len() - 1) * part / 1000];
    eprintln!(
        "{cancelled} cancelled, {taken} acquired before; ended p50 {:?}, p99 {:?}, at most {:?} after it",
        at(500),
        at(990),
        at(1000)
    );
    // Within 10 ms on an idle machine.
    assert!(at(500) < Duration::from_secs(1), "{:?}", at(500));
    assert_eq!(cancelled + taken, CANCELS);
    assert!(cancelled > 0 && taken > 0, "{cancelled}, {taken}");
    shut_down_without_a_key(&lockers, &nodes);
}

/// Shuts all lockers down, and checks that they have left no key.
fn shut_down_without_a_key(lockers: &[RedisLocker], nodes: &[Server]) {
    for locker in lockers {
        assert!(locker.nodes().shutdown(LIMIT), "all is sent");
    }
    // No key may need its TTL to end, except a reader turn, which lasts at most 60 ms.
    eventually(LIMIT, "no key is left", || {
        nodes
            .iter()
            .all(|node| ask::<usize>(node, &["DBSIZE"]) == 0)
    });
}

#[test]
fn wait_for_hung_nodes_is_cancelled() {
    let nodes = servers(3);
    let patient = RetryPolicy {
        max_outage: 10 * LIMIT,
        ..RetryPolicy::default()
    };
    let config = config(&nodes).retry(patient).node_timeout(2 * LIMIT);
    let locker = connect_by(config.connect_timeout(2 * LIMIT), &nodes);
    let key = unique_key("hung");
    nodes[1..].iter().for_each(|node| node.stop().unwrap());
    let token = CancelToken::new();
    let options = LockOptions::new(10 * TTL).cancel_on(&token);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.acquire(&key, &options).map(drop));
        eventually(LIMIT, "the healthy node has granted the lock", || {
            crate::support::fixtures::token(&nodes[0], &key).is_some()
        });
        let began = now();
        token.cancel();
        assert_eq!(waiting.join().unwrap(), Err(Error::Cancelled));
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    });
    nodes[1..].iter().for_each(|node| node.resume().unwrap());
    crate::support::fixtures::nowhere(&nodes, &key);
}

#[test]
fn cancellation_affects_no_other_waiter() {
    let nodes = servers(3);
    let locker = connect_by(config(&nodes), &nodes);
    let key = unique_key("others");
    nodes
        .iter()
        .for_each(|node| store_foreign_token(node, &key, Duration::from_millis(800)));
    let [first, second] = [CancelToken::new(), CancelToken::new()];
    thread::scope(|scope| {
        let options = [&first, &second].map(|token| LockOptions::new(TTL).cancel_on(token));
        let waiting = options.map(|options| {
            let (locker, key) = (&locker, &key);
            scope.spawn(move || locker.acquire(key, &options).map(drop))
        });
        first.cancel();
        let [ended, goes_on] = waiting.map(|waiting| waiting.join().unwrap());
        assert_eq!(ended, Err(Error::Cancelled));
        goes_on.unwrap();
    });
}
