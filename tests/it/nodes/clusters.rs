//! A cluster as a node: migrating hash slots, dying masters, and unsupported requests.

use std::thread;
use std::time::Duration;

use redguard::{
    Config, Credentials, Endpoint, Error, LockOptions, Locker, NodeFailure, NodeState, Nodes,
    RedisLocker, RedisRwLocker, RedisSemaphore, RetryPolicy, RwLocker, Semaphore,
};
use redis::FromRedisValue;

use crate::support::clusters::Cluster;
use crate::support::fixtures::{
    BRIEF, LIMIT, TTL, acquire_lock, assert_no_timeout_elapsed, at, calls, now, sluggish, token,
    with_short_timeouts,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::{Server, free_port};
use crate::support::{clusters, eventually, servers, unique_key};

fn config(cluster: &Cluster) -> Config {
    at([cluster.endpoint()])
}

fn ask<T: FromRedisValue>(server: &Server, words: &[&str]) -> T {
    crate::support::fixtures::ask(server, words)
}

fn wire(key: &str) -> String {
    crate::support::fixtures::wire(key)
}

/// Returns the only node's cause in an error.
fn cause(error: Error) -> NodeFailure {
    match error {
        Error::InsufficientQuorum { causes, .. } => causes[0].failure.clone(),
        other => panic!("{other}"),
    }
}

/// Returns whether a server stores the key of a lock, whichever server serves its hash slot.
fn has(server: &Server, key: &str) -> bool {
    let slot: u32 = clusters::ask(server, &["KEYSLOT", &wire(key)]);
    let keys: Vec<String> = clusters::ask(server, &["GETKEYSINSLOT", &slot.to_string(), "1000"]);
    keys.contains(&wire(key))
}

fn connect_error(config: Config) -> Error {
    let brief = Duration::from_secs(1);
    Nodes::connect(config.connect_timeout(brief).node_timeout(brief)).unwrap_err()
}

#[test]
fn cluster_masters_get_credentials_from_the_provider() {
    let cluster = Cluster::shared();
    for master in &cluster.masters {
        let rights = ["on", ">s3cret", "~*", "&*", "+@all"];
        ask::<()>(
            master,
            &[&["ACL", "SETUSER", "asked-for"], &rights[..]].concat(),
        );
    }
    let config = config(cluster).credentials(|_| Credentials::new("asked-for", "s3cret"));
    let locker = RedisLocker::connect(config).unwrap();
    acquire_lock(&locker, &unique_key("asked"))
        .release()
        .unwrap();
    for master in &cluster.masters {
        let clients: String = ask(master, &["CLIENT", "LIST"]);
        assert!(clients.contains(" user=asked-for "), "{clients}");
    }
}

#[test]
fn cluster_locks_are_on_their_masters_and_renewed() {
    let cluster = Cluster::shared();
    let [locker, other] = [(); 2].map(|()| RedisLocker::connect(config(cluster)).unwrap());
    let rw = RedisRwLocker::new(locker.nodes());
    let keys: Vec<String> = (0..30).map(|_| unique_key("spread")).collect();
    let renewed = LockOptions::new(BRIEF).auto_renew(true);
    let guards: Vec<_> = keys
        .iter()
        .map(|key| locker.acquire(key, &renewed).unwrap())
        .collect();
    let reading: Vec<_> = keys
        .iter()
        .map(|key| rw.acquire_read(key, &renewed).unwrap())
        .collect();
    let mut held = [0; 3];
    for key in &keys {
        let (owner, _) = cluster.owner(&wire(key));
        assert!(has(&cluster.masters[owner], key));
        held[owner] += 1;
    }
    assert!(held.iter().all(|count| *count > 0), "{held:?}");
    let extended = |server: &Server| calls(server, "pexpire");
    let before: Vec<u64> = cluster.masters.iter().map(extended).collect();
    eventually(LIMIT, "all masters extend", || {
        let now = cluster.masters.iter().map(extended);
        now.zip(&before).all(|(now, before)| now > *before)
    });
    for (key, guard) in keys.iter().zip(guards) {
        guard.check().unwrap();
        assert!(other.try_lock(key, TTL).unwrap().is_none());
        guard.release().unwrap();
        assert!(other.try_lock(key, TTL).unwrap().is_some());
    }
    for guard in reading {
        guard.release().unwrap();
    }
    let health = locker.nodes().health();
    assert_eq!(
        health.nodes[0].node,
        format!("cluster:{}", cluster.masters[0].addr())
    );
    assert_eq!(health.nodes[0].state, NodeState::Up);
}

#[test]
fn waiter_is_woken_by_each_master_of_a_cluster() {
    let cluster = Cluster::shared();
    let [holder, waiter] =
        [(); 2].map(|()| RedisLocker::connect(config(cluster).retry(sluggish())).unwrap());
    let keys: Vec<String> = (0..9).map(|_| unique_key("woken")).collect();
    thread::scope(|scope| {
        let waits: Vec<_> = keys
            .iter()
            .map(|key| {
                let held = holder.lock(key, TTL).unwrap();
                (held, scope.spawn(|| waiter.lock(key, TTL)))
            })
            .collect();
        let listens = |server: &Server, key: &str| {
            let (_, count): (String, u64) = ask(server, &["PUBSUB", "NUMSUB", &wire(key)]);
            count > 0
        };
        for key in &keys {
            eventually(LIMIT, "the waiter is subscribed", || {
                cluster.masters.iter().any(|s| listens(s, key))
            });
        }
        let began = now();
        for (held, waits) in waits {
            held.release().unwrap();
            waits.join().unwrap().unwrap().release().unwrap();
        }
        assert_no_timeout_elapsed(began);
    });
}

/// All locks with one hash tag share a hash slot, and so do the keys of one name.
fn tagged(tag: &str, name: &str) -> String {
    format!("{{{tag}}}{name}")
}

#[test]
fn migrating_slot_keeps_its_locks() {
    let cluster = Cluster::shared();
    let [locker, other] = [(); 2].map(|()| RedisLocker::connect(config(cluster)).unwrap());
    let brief = RetryPolicy {
        max_outage: Duration::from_millis(100),
        ..with_short_timeouts()
    };
    let rw = RedisRwLocker::connect(config(cluster).retry(brief)).unwrap();
    let tag = unique_key("moves");
    let [held, new, late] = ["held", "new", "late"].map(|name| tagged(&tag, name));
    let (from, slot) = cluster.owner(&wire(&held));
    let to = (from + 1) % 3;
    let [source, target] = [from, to].map(|number| &cluster.masters[number]);
    let up_since = [&locker, &other].map(|locker| locker.nodes().health().nodes[0].since);

    let guard = acquire_lock(&locker, &held);
    let writing = rw.write(&tagged(&tag, "rw"), TTL).unwrap();
    let fenced = LockOptions::new(TTL).wait_for(LIMIT).fencing(true);
    let first = locker.acquire(&tagged(&tag, "fenced"), &fenced).unwrap();
    let number = first.fencing_token().unwrap();
    first.release().unwrap();

    cluster.begin_move(&slot, from, to);
    // The source serves present keys, and the target of the migration creates new keys.
    guard.extend(2 * TTL).unwrap();
    assert!(other.try_lock(&held, TTL).unwrap().is_none());
    let moved = locker.try_lock(&new, TTL).unwrap().unwrap();
    assert!(has(source, &held) && !has(target, &held) && !has(source, &new));
    assert!(other.try_lock(&new, TTL).unwrap().is_none());
    moved.extend(2 * TTL).unwrap();
    // Several keys are served nowhere during the migration. This error concerns only their locks.
    let error = cause(rw.write(&tagged(&tag, "other"), TTL).unwrap_err());
    assert!(
        matches!(&error, NodeFailure::ServerError(text) if text.contains("TRYAGAIN")),
        "{error}"
    );
    let stuck = rw.write(&tagged(&tag, "never"), TTL).unwrap_err();
    assert!(stuck.is_unavailable());

    cluster.move_keys(&slot, from, to);
    assert!(!has(source, &held));
    guard.extend(3 * TTL).unwrap();
    assert!(other.try_lock(&held, TTL).unwrap().is_none());
    let more = other.try_lock(&late, TTL).unwrap().unwrap();
    more.release().unwrap();

    cluster.end_move(&slot, from, to);
    assert!(has(target, &held) && has(target, &new));
    guard.extend(4 * TTL).unwrap();
    writing.extend(2 * TTL).unwrap();
    assert!(other.try_lock(&held, TTL).unwrap().is_none());
    guard.release().unwrap();
    moved.release().unwrap();
    writing.release().unwrap();
    acquire_lock(&other, &held).release().unwrap();
    let next = other.acquire(&tagged(&tag, "fenced"), &fenced).unwrap();
    assert!(next.fencing_token().unwrap() > number);
    rw.write(&tagged(&tag, "other"), TTL)
        .unwrap()
        .release()
        .unwrap();
    let since = [&locker, &other].map(|locker| locker.nodes().health().nodes[0].since);
    assert_eq!(since, up_since, "no connection was closed");
}

#[test]
fn release_in_a_migrating_slot_keeps_the_cluster_up() {
    let cluster = Cluster::shared();
    let locker = RedisLocker::connect(config(cluster)).unwrap();
    let rw = RedisRwLocker::new(locker.nodes());
    let tag = unique_key("leaves");
    let key = tagged(&tag, "rw");
    let (from, slot) = cluster.owner(&wire(&key));
    let to = (from + 1) % 3;
    let writing = rw.write(&key, TTL).unwrap();
    let since = locker.nodes().health().nodes[0].since;
    cluster.begin_move(&slot, from, to);
    let error = writing.release().unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    acquire_lock(&locker, &unique_key("elsewhere"))
        .release()
        .unwrap();
    assert_eq!(locker.nodes().health().nodes[0].since, since);
    cluster.move_keys(&slot, from, to);
    cluster.end_move(&slot, from, to);
    // The lock is acquired when the migration has ended.
    let options = LockOptions::new(TTL).wait_for(LIMIT);
    rw.acquire_write(&key, &options).unwrap().release().unwrap();
}

#[test]
fn keys_in_several_slots_are_refused_with_that_cause() {
    let cluster = Cluster::shared();
    let policy = RetryPolicy {
        max_attempts: Some(1),
        ..with_short_timeouts()
    };
    let locker = RedisLocker::connect(config(cluster).retry(policy)).unwrap();
    // With a `}` outside of a hash tag the lock's key and its fence counter share no hash slot.
    let key = unique_key("a}b");
    captured_log();
    let fenced = LockOptions::new(TTL).fencing(true);
    assert!(locker.acquire(&key, &fenced).unwrap_err().is_contended());
    assert!(captured_log().mentions("CrossSlot"));
    acquire_lock(&locker, &key).release().unwrap();
    assert_eq!(locker.nodes().health().nodes[0].state, NodeState::Up);
}

#[test]
fn several_keys_must_share_a_slot_and_permits_do() {
    let cluster = Cluster::shared();
    let locker = RedisLocker::connect(config(cluster)).unwrap();
    let tag = unique_key("several");
    let names = ["a", "b", "c"].map(|name| tagged(&tag, name));
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fenced = LockOptions::new(TTL).wait_for(LIMIT).fencing(true);
    for options in [fenced, LockOptions::new(TTL).wait_for(LIMIT)] {
        let guard = locker.acquire_all(&names, &options).unwrap();
        assert!(locker.try_lock(names[1], TTL).unwrap().is_none());
        guard.extend(2 * TTL).unwrap();
        guard.release().unwrap();
    }
    names.push("elsewhere");
    match locker.acquire_all(&names, &LockOptions::new(TTL)) {
        Err(Error::InvalidKey { reason, .. }) => {
            assert!(reason.contains("another slot"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // A quorum counts a cluster as one node.
    let others = servers(2);
    let endpoints = others.iter().map(|node| Endpoint::from(node.addr()));
    let mixed = Config::new(endpoints.chain([cluster.endpoint()]));
    let mixed = RedisLocker::connect(mixed.connect_timeout(LIMIT)).unwrap();
    let refused = mixed.try_acquire_all(&names, &LockOptions::new(TTL));
    assert!(
        matches!(refused, Err(Error::InvalidKey { .. })),
        "{refused:?}"
    );

    let name = unique_key("permits");
    let exports = RedisSemaphore::new(locker.nodes(), &name, 2).unwrap();
    let patient = LockOptions::new(TTL).wait_for(LIMIT);
    let permits = [(); 2].map(|()| exports.acquire(&patient).unwrap());
    assert!(
        exports
            .try_acquire(&LockOptions::new(TTL))
            .unwrap()
            .is_none()
    );
    for permit in permits {
        permit.extend(2 * TTL).unwrap();
        permit.release().unwrap();
    }
}

#[test]
fn broken_connection_makes_reconnect_kill_all_former_ones() {
    let cluster = Cluster::start(LIMIT);
    let locker = RedisLocker::connect(config(&cluster)).unwrap();
    let keys: Vec<String> = (0..9).map(|_| unique_key("killed")).collect();
    let guards: Vec<_> = keys.iter().map(|key| acquire_lock(&locker, key)).collect();
    let kills = |server: &Server| calls(server, "client|kill");
    // Each connect asks once for permission.
    assert!(cluster.masters.iter().all(|master| kills(master) == 1));
    ask::<u32>(&cluster.masters[1], &["CLIENT", "KILL", "TYPE", "normal"]);
    eventually(LIMIT, "the node is connected again", || {
        guards.iter().all(|guard| guard.extend(2 * TTL).is_ok())
    });
    // One of the clients is the test's own.
    for (master, least) in cluster.masters.iter().zip([3, 4, 3]) {
        assert!(kills(master) >= least, "{}", master.addr());
        eventually(LIMIT, "one connection is left", || {
            let clients: String = ask(master, &["CLIENT", "LIST"]);
            let ours = clients.lines().filter(|line| !line.contains("cmd=client"));
            ours.count() == 1
        });
    }
}

#[test]
fn killed_cluster_master_is_a_fault_until_its_replica_takes_over() {
    let patience = Duration::from_secs(1);
    let cluster = Cluster::start(patience);
    let replica = cluster.replica_of(0, patience);
    let locker = RedisLocker::connect(config(&cluster)).unwrap();
    let tag = (0..)
        .map(|_| unique_key("dies"))
        .find(|tag| cluster.owner(&tagged(tag, "")).0 == 0)
        .unwrap();
    let key = tagged(&tag, "held");
    let guard = acquire_lock(&locker, &key);
    eventually(LIMIT, "the replica has the key", || has(&replica, &key));
    cluster.masters[0].kill();
    if let Err(error) = locker.try_lock(&tagged(&tag, "new"), TTL) {
        assert!(error.is_unavailable(), "{error}");
    }
    eventually(LIMIT, "the replica has taken over", || {
        locker
            .try_lock(&tagged(&tag, "new"), TTL)
            .is_ok_and(|got| got.is_some())
    });
    assert!(has(&replica, &key));
    eventually(LIMIT, "the lock is extended there", || {
        guard.extend(2 * TTL).is_ok()
    });
    acquire_lock(&locker, &unique_key("others"))
        .release()
        .unwrap();
    guard.release().unwrap();
    assert!(!has(&replica, &key));
}

#[test]
fn hung_cluster_master_is_reported_as_unresponsive() {
    let log = captured_log();
    let cluster = Cluster::start(LIMIT);
    let locker = RedisLocker::connect(config(&cluster)).unwrap();
    let key = (0..)
        .map(|_| unique_key("hangs"))
        .find(|key| cluster.owner(&wire(key)).0 == 1)
        .unwrap();
    cluster.masters[1].stop().unwrap();
    let error = locker.try_lock(&key, TTL).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    // The round does not wait for a reply to a request whose connection has ended.
    let name = locker.nodes().health().nodes[0].node.clone();
    eventually(LIMIT, "the node is unavailable", || {
        let _ = locker.try_lock(&key, TTL);
        let lines = log.lines(Level::Info, &name);
        lines.iter().any(|line| line.contains("unavailable"))
    });
    let lines = log.lines(Level::Info, &name);
    let unavailable = lines.iter().find(|line| line.contains("unavailable"));
    let is_late = |line: &String| line.ends_with("unavailable: no answer in time");
    assert!(unavailable.is_some_and(is_late), "{lines:?}");
}

#[test]
fn stopped_or_foreign_seed_does_not_prevent_connect() {
    let cluster = Cluster::shared();
    let plain = &servers(2);
    plain[0].stop().unwrap();
    let nowhere = format!("127.0.0.1:{}", free_port().unwrap());
    let seeds = [
        plain[0].addr(),
        nowhere,
        plain[1].addr(),
        cluster.masters[2].addr(),
    ];
    let name = format!("cluster:{}", seeds[0]);
    let config = at([Endpoint::cluster(seeds)]).connect_timeout(Duration::from_secs(3));
    let locker = RedisLocker::connect(config).unwrap();
    acquire_lock(&locker, &unique_key("seeds"))
        .release()
        .unwrap();
    assert_eq!(locker.nodes().health().nodes[0].node, name);
}

#[test]
fn settings_that_a_cluster_does_not_allow_are_refused_at_connect() {
    let cluster = Cluster::shared();
    let seed = || Endpoint::cluster([cluster.masters[0].addr()]);
    let max_ttl = Duration::from_secs(7);
    for (config, words) in [
        (at([seed()]).db(3), ["db 3", "cluster("]),
        (
            at([seed()]).restart_quarantine(max_ttl),
            ["restart_quarantine 7s", "cluster("],
        ),
        (
            at([Endpoint::cluster([""; 0])]),
            ["cluster([])", "no address"],
        ),
        (
            at([Endpoint::cluster(["redis://joe:s3cret@h/3"])]),
            ["redis://h/3", "no database"],
        ),
        (
            at([Endpoint::cluster(["unix:///run/s?pass=s3cret"])]),
            ["unix:///run/s", "hosts and ports"],
        ),
        (
            at([Endpoint::cluster(["http://joe:s3cret@h"])]),
            ["http://h", "use redis, rediss"],
        ),
        (at([seed(), seed()]), ["cluster:", "named twice"]),
        // Only the servers can tell that these addresses are one cluster.
        (
            at([seed(), Endpoint::cluster([cluster.masters[1].addr()])]),
            ["cluster:", "same server"],
        ),
    ] {
        let error = connect_error(config);
        let Error::InvalidConfig(text) = &error else {
            panic!("{words:?}: {error}");
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    for (server, words) in [
        (&servers(1)[0], "cluster support disabled"),
        (&clusters::server(LIMIT), "CLUSTERDOWN"),
    ] {
        let told = cause(connect_error(at([Endpoint::cluster([server.addr()])])));
        let is_told = |text: &str| text.contains(&server.addr()) && text.contains(words);
        assert!(
            matches!(&told, NodeFailure::ServerError(text) if is_told(text)),
            "{told}"
        );
    }
}

#[test]
fn a_cluster_counts_as_one_node_among_others() {
    let cluster = Cluster::shared();
    let plain = servers(2);
    captured_log();
    let nodes = [
        cluster.endpoint(),
        plain[0].addr().into(),
        plain[1].addr().into(),
    ];
    let locker = RedisLocker::connect(at(nodes)).unwrap();
    let key = unique_key("mixed");
    eventually(LIMIT, "all nodes grant locks", || {
        let guard = acquire_lock(&locker, &key);
        let (owner, _) = cluster.owner(&wire(&key));
        let everywhere = has(&cluster.masters[owner], &key)
            && plain.iter().all(|node| token(node, &key).is_some());
        guard.release().unwrap();
        everywhere
    });
    plain[0].kill();
    acquire_lock(&locker, &key).release().unwrap();
    let name = format!("cluster:{}: connected", cluster.masters[0].addr());
    assert!(!captured_log().lines(Level::Info, &name).is_empty());
}

#[test]
fn cluster_member_as_a_plain_node_is_reported() {
    let cluster = Cluster::shared();
    let told = cause(connect_error(at([cluster.masters[0].addr()])));
    let NodeFailure::ServerError(words) = &told else {
        panic!("{told}");
    };
    assert!(words.contains("`Endpoint::cluster`"), "{told}");
}
