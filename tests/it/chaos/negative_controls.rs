//! Negative controls: three ways to grant a lock twice. Each is forced, the journal reports it, and
//! a counterpart shows the rule that prevents it.

use redguard::{Locker, NodeState, RedisLocker};

use crate::support::child_process::scratch;
use crate::support::clock::Clock;
use crate::support::fixtures::{LIMIT, TTL, acquire_lock, config, connect_by, everywhere, pttl};
use crate::support::servers::Server;
use crate::support::witness::Journal;
use crate::support::{eventually, raw, servers, unique_key};

/// The first holder's guard still reports a held lock: it learns of the loss only when it asks the
/// nodes.
fn two_hold(nodes: &[Server], name: &str, forget: impl Fn(&Server, &str)) {
    let (_dir, file) = scratch();
    let journal = Journal::at(&file);
    let [first, second] = [(); 2].map(|()| connect_by(config(nodes), nodes));
    let key = unique_key(name);
    let held = acquire_lock(&first, &key);
    everywhere(nodes, &key);
    let one = journal.enter(&key);
    assert!(second.try_lock(&key, TTL).unwrap().is_none());
    nodes[..2].iter().for_each(|node| forget(node, &key));
    let mut other = None;
    eventually(LIMIT, "it is granted once more", || {
        other = second.try_lock(&key, TTL).ok().flatten();
        other.is_some()
    });
    let two = journal.enter(&key);
    assert!(held.is_held() && other.is_some_and(|other| other.is_held()));
    drop((one, two));
    let found = journal.check().unwrap_err();
    assert_eq!(found.matches("overlaps").count(), 1, "{found}");
    eventually(LIMIT, "the first holder is told of the loss", || {
        held.extend(TTL).is_err_and(|error| error.is_lost())
    });
}

#[test]
fn majority_that_restarts_without_data_grants_a_lock_twice() {
    two_hold(&servers(3), "restarted", |node, _| node.restart().unwrap());
}

#[test]
fn majority_that_evicts_grants_a_lock_twice() {
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
        // Checked with a command that does not touch the key.
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
fn majority_whose_clocks_step_beyond_a_ttl_grants_a_lock_twice() {
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
fn majority_that_restarts_without_data_grants_nothing_in_quarantine() {
    let nodes = servers(3);
    let first = connect_by(config(&nodes), &nodes);
    let key = unique_key("quarantined");
    let held = acquire_lock(&first, &key);
    everywhere(&nodes, &key);
    nodes[..2].iter().for_each(|node| node.restart().unwrap());
    let careful = config(&nodes).restart_quarantine(TTL);
    let careful = RedisLocker::connect(careful).unwrap();
    eventually(LIMIT, "the nodes are connected", || {
        let nodes = careful.nodes().health().nodes;
        nodes
            .iter()
            .all(|node| node.state == NodeState::Quarantined)
    });
    for _ in 0..10 {
        assert!(careful.try_lock(&key, TTL).unwrap().is_none());
    }
    assert!(held.is_held());
    // The quarantine keeps the lock.
    let careless = connect_by(config(&nodes), &[]);
    drop(acquire_lock(&careless, &key));
}
