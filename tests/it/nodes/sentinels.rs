//! A master behind sentinels as a node: a fail-over, and sentinels that hang, lie or know no
//! master.

use std::thread;
use std::time::Duration;

use redguard::{
    Config, Credentials, Endpoint, Error, Locker, NodeFailure, NodeState, Nodes, RedisLocker, Role,
};

use crate::support::fixtures::{LIMIT, TTL, acquire_lock, ask, at, now, token, wire};
use crate::support::hostile::{BadReply, Hostile, Then};
use crate::support::sentinels::{MASTER, Watched};
use crate::support::servers::{Server, free_port};
use crate::support::{eventually, servers, unique_key};

/// Starts a hostile server that acts as a sentinel and names this server as the master.
fn naming(before: &Server, named: &Server) -> Hostile {
    let port = named.port().to_string();
    let says = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
    saying(before, &says)
}

fn saying(before: &Server, says: &str) -> Hostile {
    let sentinel = Hostile::before(before.addr());
    let says = says.as_bytes().to_vec();
    sentinel.set_bad_reply(
        "SENTINEL",
        &BadReply {
            says,
            then: Then::GoOn,
        },
    );
    sentinel
}

fn by(sentinels: &[&str]) -> Config {
    at([Endpoint::sentinel(MASTER, sentinels)])
}

fn refused(config: Config) -> Error {
    let brief = Duration::from_secs(1);
    Nodes::connect(config.connect_timeout(brief).node_timeout(brief)).unwrap_err()
}

fn cause(error: Error) -> NodeFailure {
    match error {
        Error::InsufficientQuorum { causes, .. } => causes[0].failure.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn killed_master_is_replaced_by_its_replica() {
    let watched = Watched::start(3);
    let config = at([watched.endpoint()]).connect_timeout(Duration::from_secs(2));
    let locker = RedisLocker::connect(config).unwrap();
    let key = unique_key("held");
    let guard = acquire_lock(&locker, &key);
    let stored = token(&watched.master, &key);
    assert!(stored.is_some());
    eventually(LIMIT, "the replica has the key", || {
        token(&watched.replica, &key) == stored
    });
    // One hung sentinel of three changes nothing: the others agree and answer.
    watched.sentinels[0].stop().unwrap();
    watched.master.kill();
    if let Err(error) = locker.try_lock(&unique_key("new"), TTL) {
        assert!(error.is_unavailable(), "{error}");
    }
    let new = unique_key("new");
    eventually(LIMIT, "the replica has taken over", || {
        locker.try_lock(&new, TTL).is_ok_and(|got| got.is_some())
    });
    assert_eq!(token(&watched.replica, &key), stored);
    eventually(LIMIT, "the lock is extended there", || {
        guard.extend(2 * TTL).is_ok()
    });
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    guard.release().unwrap();
    assert_eq!(token(&watched.replica, &key), None);
    let name = format!("sentinel:{MASTER}@{}", watched.sentinels[0].addr());
    let health = locker.nodes().health();
    assert_eq!(
        (&*health.nodes[0].node, health.nodes[0].state),
        (&*name, NodeState::Up)
    );
}

#[test]
fn demoted_master_is_left() {
    let [old, new] = <[Server; 2]>::try_from(servers(2)).unwrap();
    let sentinel = naming(&new, &old);
    let locker = RedisLocker::connect(by(&[&sentinel.addr()])).unwrap();
    acquire_lock(&locker, &unique_key("before"))
        .release()
        .unwrap();
    sentinel.restore();
    let port = new.port().to_string();
    let says = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len()).into_bytes();
    sentinel.set_bad_reply(
        "SENTINEL",
        &BadReply {
            says,
            then: Then::GoOn,
        },
    );
    // No server closes the connection: only the reply reveals the change.
    ask::<()>(&old, &["REPLICAOF", "127.0.0.1", &port]);
    let key = unique_key("after");
    let told = cause(locker.try_lock(&key, TTL).unwrap_err());
    assert!(
        matches!(&told, NodeFailure::ServerError(text) if text.contains("READONLY")),
        "{told}"
    );
    eventually(LIMIT, "the new master serves", || {
        let guard = locker.try_lock(&key, TTL).ok().flatten();
        guard.is_some_and(|guard| token(&new, guard.key()).is_some())
    });
}

#[test]
fn stopped_first_sentinel_delays_no_caller() {
    let [stopped, other] = <[Server; 2]>::try_from(servers(2)).unwrap();
    let locked = Server::options().arg("--requirepass", "pass");
    let master = locked.start().unwrap();
    stopped.stop().unwrap();
    let good = naming(&other, &master);
    let stale = naming(&other, &stopped);
    let stalls = |first: String| {
        let config = by(&[&first, &good.addr()]).password("pass").db(3);
        let start = now();
        let locker = RedisLocker::connect(config.connect_timeout(Duration::from_secs(6)));
        let locker = locker.unwrap_or_else(|error| panic!("{first}: {error}"));
        assert!(start.elapsed() < LIMIT);
        acquire_lock(&locker, &unique_key("stopped"))
            .release()
            .unwrap();
    };
    // A hung master changes nothing either if another sentinel knows a better one, for requests of
    // any size.
    thread::scope(|scope| {
        for first in [stopped.addr(), stale.addr()] {
            scope.spawn(|| stalls(first));
        }
    });
}

#[test]
fn first_sentinel_whose_server_is_a_master_is_used() {
    let [replica, other, master] = <[Server; 3]>::try_from(servers(3)).unwrap();
    let port = master.port().to_string();
    ask::<()>(&replica, &["REPLICAOF", "127.0.0.1", &port]);
    let nobody = saying(&other, "*-1\r\n");
    let stale = naming(&other, &replica);
    let nonsense = saying(&other, "+OK\r\n");
    let good = naming(&other, &master);
    let nowhere = format!("127.0.0.1:{}", free_port().unwrap());
    let bad = [nowhere, nobody.addr(), nonsense.addr(), stale.addr()];
    let mut all: Vec<&str> = bad.iter().map(|address| &**address).collect();
    let patient = by(&all).connect_timeout(Duration::from_secs(3));
    let told = cause(Nodes::connect(patient).unwrap_err()).to_string();
    assert!(bad.iter().all(|address| told.contains(address)), "{told}");
    assert!(
        told.contains("unknown master \"mymaster\"") && told.contains("ROLE is not master"),
        "{told}"
    );
    let good = good.addr();
    all.push(&good);
    let locker = RedisLocker::connect(by(&all)).unwrap();
    let guard = acquire_lock(&locker, &unique_key("asked"));
    assert!(token(&master, guard.key()).is_some());
    let health = locker.nodes().health();
    assert_eq!(health.nodes[0].role, Some(Role::Master));
}

#[test]
fn a_sentinel_and_its_master_have_passwords_of_their_own() {
    let [theirs, ours] = ["sentinel-secret", "master-secret"].map(unique_key);
    let locked = |password: &str| {
        Server::options()
            .arg("--requirepass", password)
            .start()
            .unwrap()
    };
    let (before, master) = (locked(&theirs), locked(&ours));
    let sentinel = naming(&before, &master);
    let address = format!("redis://:{theirs}@{}", sentinel.addr());
    let config = by(&[&address]).password(&*ours);
    assert!(!format!("{config:?}").contains("secret"));
    let locker = RedisLocker::connect(config.clone()).unwrap();
    acquire_lock(&locker, &unique_key("locked"))
        .release()
        .unwrap();
    let asks = by(&[&address]).credentials({
        let (name, ours) = (
            format!("sentinel:mymaster@{}", sentinel.addr()),
            ours.clone(),
        );
        move |node| match node == name {
            true => Credentials::password(&*ours),
            false => Credentials::password("of another node"),
        }
    });
    let locker = RedisLocker::connect(asks).unwrap();
    acquire_lock(&locker, &unique_key("asked"))
        .release()
        .unwrap();
    // The database numbers apply to the master.
    let in_database = RedisLocker::connect(config.db(3)).unwrap();
    let key = unique_key("db");
    let guard = acquire_lock(&in_database, &key);
    let mut bare = redis::Client::open(format!("redis://:{ours}@{}/3", master.addr()))
        .unwrap()
        .get_connection()
        .unwrap();
    assert!(
        redis::cmd("EXISTS")
            .arg(wire(&key))
            .query::<bool>(&mut bare)
            .unwrap()
    );
    guard.release().unwrap();
    for config in [by(&[&address]), by(&[&address]).password("wrong")] {
        let told = cause(refused(config));
        assert!(
            matches!(&told, NodeFailure::AccessDenied(text) if !text.contains("secret")),
            "{told}"
        );
    }
}

#[test]
fn settings_that_sentinels_do_not_allow_are_refused_at_connect() {
    for (config, words) in [
        (
            by(&["h"]).restart_quarantine(Duration::from_secs(7)),
            ["restart_quarantine 7s", "sentinel(\"mymaster\""],
        ),
        (by(&[]), ["sentinel(\"mymaster\", [])", "no address"]),
        (
            at([Endpoint::sentinel("", ["h"])]),
            ["sentinel(\"\"", "name"],
        ),
        (
            at([Endpoint::sentinel("a\nb", ["h"])]),
            ["sentinel(\"a\\nb\"", "name"],
        ),
        (
            by(&["redis://joe:s3cret@h/3"]),
            ["redis://h/3", "no database"],
        ),
        (
            by(&["unix:///run/s?pass=s3cret"]),
            ["unix:///run/s", "hosts and ports"],
        ),
        (by(&[""]), ["address", "empty"]),
        (
            at([
                Endpoint::sentinel("m", ["h:1"]),
                Endpoint::sentinel("m", ["H:1"]),
            ]),
            ["sentinel:m@h:1", "named twice"],
        ),
    ] {
        let error = refused(config);
        let Error::InvalidConfig(text) = &error else {
            panic!("{words:?}: {error}");
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    // An address without a port means the default port of sentinels.
    let told = cause(refused(by(&["127.0.0.1"]))).to_string();
    assert!(told.contains("127.0.0.1:26379"), "{told}");
}

#[test]
fn sentinel_as_a_plain_node_is_reported() {
    let sentinel = Server::options().sentinel("").start().unwrap();
    let told = cause(refused(at([sentinel.addr()])));
    let NodeFailure::ServerError(words) = &told else {
        panic!("{told}");
    };
    assert!(words.contains("`Endpoint::sentinel`"), "{told}");
}
