//! Minimum times on real nodes: a lock released early is kept, whatever a minority does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use redguard::{LockOptions, Locker};

use crate::support::fixtures::{TTL, connect, everywhere, now, nowhere, pttl, token};
use crate::support::servers::Server;
use crate::support::{servers, unique_key};

const HOLD: Duration = Duration::from_secs(2);

fn held_for(time: Duration) -> LockOptions {
    LockOptions::new(TTL).min_hold(time)
}

#[test]
fn lock_released_early_is_kept_on_real_nodes_while_one_hangs() {
    let nodes = servers(3);
    let (locker, rival) = (connect(&nodes), connect(&nodes));
    for keys in [
        vec![unique_key("kept")],
        vec![unique_key("a"), unique_key("b")],
    ] {
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        let start = now();
        let guard = locker.acquire_all(&names, &held_for(HOLD)).unwrap();
        let mine = everywhere(&nodes, names[0]);
        nodes[0].stop().unwrap();
        guard.release().unwrap();
        for (node, key) in nodes[1..]
            .iter()
            .flat_map(|node| names.iter().map(move |k| (node, k)))
        {
            let left = u64::try_from(pttl(node, key)).unwrap();
            assert!(left <= HOLD.as_millis() as u64, "{left}");
            assert_eq!(token(node, key).unwrap(), mine);
        }
        assert!(
            rival
                .try_acquire_all(&names, &held_for(HOLD))
                .unwrap()
                .is_none()
        );
        nodes[0].resume().unwrap();
        let next = rival.acquire_all(&names, &LockOptions::new(TTL)).unwrap();
        let waited = start.elapsed();
        assert!(waited >= HOLD && waited < TTL / 2, "{waited:?}");
        next.release().unwrap();
        names.iter().for_each(|key| nowhere(&nodes, key));
    }
}

#[test]
fn brief_job_runs_once_on_hosts_whose_clocks_differ() {
    let nodes: Vec<Server> = servers(3);
    let (key, runs) = (unique_key("job"), AtomicUsize::new(0));
    thread::scope(|scope| {
        for host in 0..4 {
            let (nodes, key, runs) = (&nodes, &key, &runs);
            let locker = connect(nodes);
            scope.spawn(move || {
                thread::park_timeout(Duration::from_millis(100 * host));
                if let Some(guard) = locker.try_acquire(key, &held_for(10 * HOLD)).unwrap() {
                    runs.fetch_add(1, Ordering::SeqCst);
                    drop(guard);
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}
