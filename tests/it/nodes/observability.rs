//! Observability: statistics, observers, holders, and forced releases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use redguard::{
    Config, Error, LockOptions, Locker, LossReason, Mode, NodeReply, NodeState, NodeStats, Nodes,
    Observer, RedisLocker, RedisRwLocker, RwLocker, WatchOutcome,
};

use crate::support::fixtures::{
    BRIEF, LIMIT, TTL, ask, at, config, connect, connect_by, shared, subscribers, token, wire,
    with_short_timeouts,
};
use crate::support::{eventually, raw, servers, unique_key};

/// Records the events of an observer.
#[derive(Default)]
struct Diary {
    lines: Mutex<Vec<String>>,
    replies: Mutex<HashMap<(String, NodeReply), u64>>,
}

impl Diary {
    fn note(&self, what: &str, key: &str) {
        self.lines.lock().unwrap().push(format!("{what} {key}"));
    }

    fn of(&self, key: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let of = lines.iter().filter_map(|line| line.strip_suffix(key));
        of.map(|what| what.trim_end().to_owned()).collect()
    }
}

impl Observer for Diary {
    fn attempted(&self, key: &str) {
        self.note("attempted", key);
    }

    fn acquired(&self, key: &str, mode: Mode, _waited: Duration) {
        self.note(
            if mode == Mode::Quorum {
                "granted"
            } else {
                "granted here"
            },
            key,
        );
    }

    fn contended(&self, key: &str, _waited: Duration) {
        self.note("contended", key);
    }

    fn unavailable(&self, key: &str, _waited: Duration) {
        self.note("unavailable", key);
    }

    fn lost(&self, key: &str) {
        self.note("lost", key);
    }

    fn released(&self, key: &str, _held: Duration, late: bool) {
        self.note(if late { "released late" } else { "released" }, key);
    }

    fn renewed(&self, key: &str) {
        self.note("renewed", key);
    }

    fn replied(&self, node: &str, reply: NodeReply, latency: Duration) {
        assert!(latency < LIMIT);
        *self
            .replies
            .lock()
            .unwrap()
            .entry((node.to_owned(), reply))
            .or_default() += 1;
    }
}

fn watched(config: Config) -> (RedisLocker, Arc<Diary>) {
    let diary = Arc::new(Diary::default());
    let locker = RedisLocker::connect(config.observer(diary.clone())).unwrap();
    (locker, diary)
}

/// Waits until all nodes are up, because a round does not ask the others.
fn all_up(locker: &RedisLocker) {
    eventually(LIMIT, "all nodes are up", || {
        let nodes = locker.nodes().health().nodes;
        nodes.iter().all(|node| node.state == NodeState::Up)
    });
}

#[test]
fn lock_events_are_counted_and_observed() {
    let (locker, diary) = watched(config(shared()));
    let (key, other) = (unique_key("told"), unique_key("taken"));
    let guard = locker.lock(&key, TTL).unwrap();
    assert!(locker.try_lock(&key, TTL).unwrap().is_none()); // held in this process: no node is asked
    guard.release().unwrap();
    let foreign = RedisLocker::connect(config(shared()))
        .unwrap()
        .lock(&other, TTL)
        .unwrap();
    assert!(locker.try_lock(&other, TTL).unwrap().is_none());
    foreign.release().unwrap();
    assert_eq!(
        diary.of(&key),
        ["attempted", "granted", "contended", "released"]
    );
    assert_eq!(diary.of(&other), ["attempted", "contended"]);

    let stats = locker.nodes().stats();
    assert_eq!((stats.acquired, stats.acquired_locally), (1, 0));
    assert_eq!((stats.contended, stats.unavailable), (2, 0));
    assert_eq!((stats.attempts, stats.lost, stats.released_late), (2, 0, 0));
    assert_eq!((stats.wait_time.count, stats.hold_time.count), (1, 1));
    assert!(stats.wait_time.total > Duration::ZERO && stats.hold_time.max > Duration::ZERO);
}

#[test]
fn each_nodes_replies_are_counted_with_their_time() {
    let (locker, diary) = watched(config(shared()));
    all_up(&locker);
    let key = unique_key("replies");
    let foreign = RedisLocker::connect(config(shared()))
        .unwrap()
        .lock(&key, TTL)
        .unwrap();
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    foreign.release().unwrap();
    locker.lock(&key, TTL).unwrap().release().unwrap();
    // Two nodes refused the first lock, and two granted and released the second. A third node may
    // answer late, undo its own refusal, or not be asked after the verdict.
    let told = || {
        let nodes = locker.nodes().stats().nodes;
        let sum = |part: fn(&NodeStats) -> u64| nodes.iter().map(part).sum::<u64>();
        let all = nodes.iter().all(|node| node.latency.count >= 1);
        all && sum(|node| node.refused) >= 2 && sum(|node| node.done) >= 4
    };
    eventually(LIMIT, "all replies are in", told);
    let told = || {
        let stats = locker.nodes().stats();
        let replies = diary.replies.lock().unwrap();
        let count = |name: &str, reply| *replies.get(&(name.to_owned(), reply)).unwrap_or(&0);
        stats.nodes.iter().all(|node| {
            node.done == count(&node.node, NodeReply::Done)
                && node.refused == count(&node.node, NodeReply::Refused)
                && node.latency.count == node.done + node.refused
        })
    };
    eventually(LIMIT, "the observer has the same counts", told);
    for (node, server) in locker.nodes().stats().nodes.iter().zip(shared()) {
        assert_eq!(node.node, server.addr());
        assert_eq!((node.errors, node.no_reply), (0, 0));
        assert!(node.latency.total > Duration::ZERO);
        assert!(node.latency.mean() <= node.latency.max);
    }
}

#[test]
fn unresponsive_node_is_counted() {
    let nodes = servers(3);
    let (locker, diary) =
        watched(at(nodes.iter().map(|s| s.addr())).node_timeout(Duration::from_millis(500)));
    let key = unique_key("unknown");
    nodes[2].stop().unwrap();
    locker.lock(&key, TTL).unwrap().release().unwrap();
    let unknown = || locker.nodes().stats().nodes[2].no_reply > 0;
    eventually(LIMIT, "the node has not replied", unknown);
    nodes[2].resume().unwrap();
    assert!(diary.replies.lock().unwrap()[&(nodes[2].addr(), NodeReply::NoReply)] > 0);
    assert_eq!(locker.nodes().stats().nodes[0].no_reply, 0);
}

#[test]
fn renewals_and_losses_are_counted_and_observed() {
    let (locker, diary) = watched(config(shared()));
    let key = unique_key("kept");
    let guard = locker
        .acquire(&key, &LockOptions::new(BRIEF).auto_renew(true))
        .unwrap();
    eventually(LIMIT, "the lock is renewed", || {
        locker.nodes().stats().renewals > 0
    });
    assert!(locker.force_release(&key).unwrap());
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    eventually(LIMIT, "the loss is counted", || {
        locker.nodes().stats().lost == 1
    });
    let stats = locker.nodes().stats();
    assert_eq!((stats.released_late, stats.hold_time.count), (1, 0));
    let told = diary.of(&key);
    for what in ["renewed", "lost", "released late"] {
        assert!(told.iter().any(|line| line == what), "{what} in {told:?}");
    }
}

#[test]
fn an_outage_is_unavailable_not_contended() {
    let nodes = servers(1);
    let policy = redguard::RetryPolicy {
        max_outage: Duration::from_millis(1),
        ..with_short_timeouts()
    };
    let (locker, diary) = watched(config(&nodes).retry(policy));
    let key = unique_key("outage");
    drop(nodes);
    let error = locker.lock(&key, TTL).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert_eq!(diary.of(&key).last().unwrap(), "unavailable");
    let stats = locker.nodes().stats();
    assert_eq!(
        (stats.unavailable, stats.contended, stats.acquired),
        (1, 0, 0)
    );
}

#[test]
fn observer_that_panics_affects_no_lock() {
    struct Panics;
    impl Observer for Panics {
        fn attempted(&self, _: &str) {
            panic!("attempted");
        }

        fn acquired(&self, _: &str, _: Mode, _: Duration) {
            panic!("granted");
        }

        fn released(&self, _: &str, _: Duration, _: bool) {
            panic!("released");
        }

        fn replied(&self, _: &str, _: NodeReply, _: Duration) {
            std::panic::resume_unwind(Box::new("in a worker, where another test counts panics"));
        }
    }
    let locker = RedisLocker::connect(config(shared()).observer(Arc::new(Panics))).unwrap();
    let key = unique_key("panics");
    for _ in 0..3 {
        locker.lock(&key, TTL).unwrap().release().unwrap();
    }
    let stats = locker.nodes().stats();
    assert_eq!((stats.acquired, stats.hold_time.count), (3, 3));
    assert!(stats.nodes.iter().all(|node| node.no_reply == 0));
}

#[test]
fn holder_reports_label_and_remaining_time() {
    let locker = RedisLocker::connect(config(shared()).owner_label("night shift")).unwrap();
    all_up(&locker);
    let key = unique_key("seen");
    assert_eq!(locker.holder(&key).unwrap(), None);
    let before = SystemTime::now();
    let guard = locker.lock(&key, TTL).unwrap();
    let look = || {
        RedisLocker::connect(config(shared()))
            .unwrap()
            .holder(&key)
            .unwrap()
            .unwrap()
    };
    eventually(LIMIT, "all nodes have it", || look().nodes == 3);
    let holder = look();
    assert_eq!(holder.owner_label.as_deref(), Some("night shift"));
    assert!(holder.has_quorum() && holder.quorum == 2);
    let since = holder.since.unwrap();
    let fraction = Duration::from_millis(1);
    assert!(before < since + fraction && since <= SystemTime::now());
    let remaining = holder.remaining.unwrap();
    assert!(remaining <= TTL && remaining > TTL / 2, "{remaining:?}");
    guard.release().unwrap();
    eventually(LIMIT, "the key is gone", || {
        locker.holder(&key).unwrap().is_none()
    });
}

#[test]
fn refused_caller_is_told_the_holder() {
    let nodes = servers(3);
    let holder = connect_by(config(&nodes).owner_label("web-7:8080"), &nodes);
    let rival = connect(&nodes);
    let (key, other) = (unique_key("told"), unique_key("other"));
    let _guard = holder.lock(&key, TTL).unwrap();
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let told = |keys: &[&str]| {
        let error = rival.acquire_all(keys, &at_once).unwrap_err();
        let Error::Contended {
            lock, remaining, ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(remaining.is_some_and(|left| left <= TTL), "{remaining:?}");
        assert_eq!(lock.key, key);
        lock.owner_label
    };
    assert_eq!(told(&[&key]).as_deref(), Some("web-7:8080"));
    assert_eq!(told(&[&other, &key]).as_deref(), Some("web-7:8080"));
    let texts = rival.acquire(&key, &at_once).unwrap_err();
    let texts = format!("{texts} {texts:?}");
    let stored = token(&nodes[0], &key).unwrap();
    assert!(
        !texts.contains(&stored["web-7:8080:".len()..][..8]),
        "{texts}"
    );
    // Without the script the remaining time is asked all the same.
    for node in &nodes {
        ask::<()>(node, &["SCRIPT", "FLUSH"]);
    }
    assert_eq!(told(&[&key]), None);
    // A value of another client is shown up to its last colon, and one without a colon is not.
    for (value, label) in [("host:7:secret", Some("host:7")), ("secret", None)] {
        for node in &nodes {
            ask::<()>(node, &["SET", &wire(&other), value, "PX", "100000"]);
        }
        let error = connect(&nodes).acquire(&other, &at_once).unwrap_err();
        let lock = error.contended_lock().unwrap();
        assert_eq!(lock.owner_label.as_deref(), label);
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}

#[test]
fn holder_reports_a_missing_quorum_and_a_foreign_value() {
    let locker = RedisLocker::connect(config(shared())).unwrap();
    let key = unique_key("parts");
    let wire = format!("redguard:{key}");
    let mut node = raw(&shared()[1]);
    redis::cmd("SET")
        .arg(&wire)
        .arg("someone\n:else")
        .exec(&mut node)
        .unwrap();
    let holder = locker.holder(&key).unwrap().unwrap();
    assert_eq!(
        (holder.nodes, holder.has_quorum(), holder.remaining),
        (1, false, None)
    );
    assert_eq!(holder.owner_label.as_deref(), Some("someone "));
    assert!(locker.force_release(&key).unwrap());
    assert!(
        !locker.force_release(&key).unwrap(),
        "there is nothing left"
    );

    for node in &shared()[..2] {
        redis::cmd("RPUSH")
            .arg(&wire)
            .arg("a list")
            .exec(&mut raw(node))
            .unwrap();
    }
    // A foreign value under the key refuses the lock.
    assert!(locker.holder(&key).unwrap().unwrap().foreign);
    assert!(!locker.force_release(&key).unwrap());
    for node in &shared()[..2] {
        let left: i64 = redis::cmd("DEL").arg(&wire).query(&mut raw(node)).unwrap();
        assert_eq!(left, 1, "a foreign value is left alone");
    }
}

#[test]
fn force_release_wakes_waiters() {
    let holder = RedisLocker::connect(config(shared())).unwrap();
    let waiter =
        RedisLocker::connect(config(shared()).retry(crate::support::fixtures::sluggish())).unwrap();
    let key = unique_key("broken");
    let guard = holder.lock(&key, TTL).unwrap();
    let began = crate::support::fixtures::now();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock(&key, TTL).map(|guard| guard.release()));
        eventually(LIMIT, "the caller waits", || {
            waiter.nodes().stats().attempts >= 2
        });
        assert!(holder.force_release(&key).unwrap());
        waits.join().unwrap().unwrap().unwrap();
    });
    crate::support::fixtures::assert_no_timeout_elapsed(began);
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
}

#[test]
fn force_release_is_told_to_its_holder_before_the_next_renewal() {
    let key = unique_key("told");
    for is_renewed in [true, false] {
        let nodes = servers(3);
        let [holder, operator] = [(); 2].map(|()| connect(&nodes));
        let (tell, told) = std::sync::mpsc::channel();
        // Renewals begin after 18 s.
        let options = LockOptions::new(Duration::from_secs(60))
            .auto_renew(is_renewed)
            .on_lost(move |lost| tell.send(lost.reason()).unwrap());
        let guard = holder.acquire(&key, &options).unwrap();
        eventually(LIMIT, "notices are received", || {
            subscribers(&nodes[0], "listener:notices") == 1
        });
        assert!(operator.force_release(&key).unwrap());
        let reason = told.recv_timeout(Duration::from_secs(10));
        assert_eq!(reason, Ok(LossReason::NotOurs));
        assert!(!guard.is_held());
    }
}

#[test]
fn force_release_without_quorum_is_an_error() {
    let nodes = servers(3);
    let locker = RedisLocker::connect(config(&nodes)).unwrap();
    let key = unique_key("unreachable");
    assert!(matches!(locker.holder(""), Err(Error::InvalidKey { .. })));
    assert!(matches!(
        locker.force_release("x:gate"),
        Err(Error::InvalidKey { .. })
    ));
    drop(nodes);
    for error in [
        locker.holder(&key).unwrap_err(),
        locker.force_release(&key).unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::InsufficientQuorum { needed: 2, .. }),
            "{error}"
        );
    }
    _ = locker.nodes().shutdown(Duration::ZERO);
    assert_eq!(locker.holder(&key), Err(Error::Closed));
    assert_eq!(locker.force_release(&key), Err(Error::Closed));
    assert!(locker.nodes().stats().nodes.len() == 3);
}

#[test]
fn a_read_write_lock_is_counted_too_but_has_no_holder() {
    let nodes = Nodes::connect(config(shared())).unwrap();
    let (rw, locker) = (RedisRwLocker::new(&nodes), RedisLocker::new(&nodes));
    let key = unique_key("shared");
    let guard = rw.write(&key, TTL).unwrap();
    assert_eq!(locker.holder(&key).unwrap(), None, "it is another lock");
    assert!(!locker.force_release(&key).unwrap());
    guard.downgrade().unwrap().release().unwrap();
    let stats = nodes.stats();
    assert_eq!((stats.acquired, stats.hold_time.count), (1, 1));
}
