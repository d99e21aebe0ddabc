//! Negative controls: three ways in which a lock is given away twice, forced, and seen by the journal; and what prevents them.

use redguard::{Locker, NodeState, RedisLocker};

use crate::support::child_process::scratch;
use crate::support::clock::Clock;
use crate::support::fixtures::{LIMIT, TTL, config, connect_by, everywhere, pttl, take};
use crate::support::servers::Server;
use crate::support::witness::Journal;
use crate::support::{eventually, raw, servers, unique_key};

/// The first holder's guard says that it holds: it has not been told yet, and will not be before it asks.
fn two_hold(nodes: &[Server], name: &str, forget: impl Fn(&Server, &str)) {
    let (_dir, file) = scratch();
    let journal = Journal::at(&file);
    let [first, second] = [(); 2].map(|()| connect_by(config(nodes), nodes));
    let key = unique_key(name);
    let held = take(&first, &key);
    everywhere(nodes, &key);
    let one = journal.enter(&key);
    assert!(second.try_lock(&key, TTL).unwrap().is_none());
    nodes[..2].iter().for_each(|node| forget(node, &key));
    let mut other = None;
    eventually(LIMIT, "it is given away once more", || {
        other = second.try_lock(&key, TTL).ok().flatten();
        other.is_some()
    });
    let two = journal.enter(&key);
    assert!(held.is_held() && other.is_some_and(|other| other.is_held()));
    drop((one, two));
    let found = journal.check().unwrap_err();
    assert_eq!(found.matches("overlaps").count(), 1, "{found}");
    eventually(LIMIT, "the first is told", || {
        held.extend(TTL).is_err_and(|error| error.is_lost())
    });
}

#[test]
fn a_majority_that_restarts_without_its_data_gives_a_lock_away_twice() {
    two_hold(&servers(3), "restarted", |node, _| node.restart().unwrap());
}

#[test]
fn a_majority_that_evicts_gives_a_lock_away_twice() {
    let start = || {
        Server::options()
            .arg("--maxmemory", "4mb")
            .arg("--maxmemory-policy", "allkeys-lru")
            .start()
            .unwrap()
    };
    two_hold(&[(); 3].map(|()| start()), "evicted", |node, key| {
        let mut connection = raw(node);
        let mut next = 0;
        // Looked for in a way that is no use of the key.
        eventually(LIMIT, "it is evicted", || {
            let mut flood = redis::pipe();
            for number in next..next + 500 {
                flood.set(number, [b'x'; 1024].as_slice()).ignore();
            }
            next += 500;
            flood.query::<()>(&mut connection).unwrap();
            pttl(node, key) == -2
        });
    });
}

#[test]
fn a_majority_whose_clocks_step_over_a_ttl_gives_a_lock_away_twice() {
    let Some(clocks) = (0..3).map(|_| Clock::new()).collect::<Option<Vec<_>>>() else {
        return;
    };
    let start = |clock: &Clock| clock.drive(Server::options()).start().unwrap();
    let nodes: Vec<Server> = clocks.iter().map(start).collect();
    two_hold(&nodes, "stepped", |node, _| {
        let at = nodes.iter().position(|other| other.port() == node.port());
        clocks[at.unwrap()].ahead(2 * TTL);
    });
}

#[test]
fn a_majority_that_restarts_without_its_data_gives_nothing_away_under_quarantine() {
    let nodes = servers(3);
    let first = connect_by(config(&nodes), &nodes);
    let key = unique_key("quarantined");
    let held = take(&first, &key);
    everywhere(&nodes, &key);
    nodes[..2].iter().for_each(|node| node.restart().unwrap());
    let careful = config(&nodes).restart_quarantine(TTL);
    let careful = RedisLocker::connect(careful).unwrap();
    eventually(LIMIT, "they are connected", || {
        let nodes = careful.nodes().health().nodes;
        nodes
            .iter()
            .all(|node| node.state == NodeState::Quarantined)
    });
    for _ in 0..10 {
        assert!(careful.try_lock(&key, TTL).unwrap().is_none());
    }
    assert!(held.is_held());
    // It is the quarantine that keeps it.
    let careless = connect_by(config(&nodes), &[]);
    drop(take(&careless, &key));
}
