//! Access rights: passwords, and ACL users with the rights that the README lists. The test reads
//! them from there.

use std::collections::HashMap;
use std::io::Read;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use redguard::{
    Config, Credentials, Error, FailedNode, LockGuard, LockOptions, Locker, NodeFailure, NodeState,
    Nodes, ReadGuard, RedisLocker, RedisRwLocker, RedisSemaphore, RetryPolicy, RwLocker, Semaphore,
    SemaphorePermit, WriteGuard,
};

use crate::support::fixtures::{
    BRIEF, LIMIT, TTL, acquire_lock, ask, assert_no_timeout_elapsed, at, calls, config, connect,
    now, nowhere, pttl, sluggish, subscribers, wait_until_it_grants, wire, with_short_timeouts,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::{Server, free_port};
use crate::support::{eventually, servers, unique_key};

/// Time limit for a node that refuses: longer than any reply of a healthy node on a busy machine.
const REFUSED: Duration = Duration::from_secs(1);
const USER: &str = "locks";

fn causes(error: Error) -> Box<[FailedNode]> {
    match error {
        Error::InsufficientQuorum { causes, .. } => causes,
        other => panic!("{other}"),
    }
}

#[test]
fn password_logs_in_and_is_never_shown() {
    let [right, wrong] = ["right", "wrong"].map(|word| unique_key(&format!("{word}-secret")));
    captured_log();
    let options = Server::options().arg("--requirepass", &right);
    let node = options.start().unwrap();
    let named = |secret: &str| at([format!("redis://:{secret}@{}", node.addr())]);
    let nowhere = format!("redis://joe:{right}@127.0.0.1:{}", free_port().unwrap());
    let no_socket = format!("unix:///nowhere?user=joe&pass={right}");
    for (config, denied) in [
        (at([node.addr()]).password(&*wrong), true),
        (at([node.addr()]).username("nobody").password(&*right), true),
        (named(&wrong), true),
        (at([node.addr()]), true),
        (at([nowhere]), false),
        (at([no_socket]), false),
    ] {
        let config = config.node_timeout(REFUSED).connect_timeout(REFUSED);
        let error = Nodes::connect(config.clone()).unwrap_err();
        let shown = format!("{config:?} {error} {error:?}");
        assert!(!shown.contains("secret"), "{shown}");
        assert_eq!(error.is_denied(), denied, "{shown}");
        assert_eq!(error.is_unavailable(), !denied, "{shown}");
        let is_denied = matches!(causes(error)[0].failure, NodeFailure::AccessDenied(_));
        assert_eq!(is_denied, denied, "{shown}");
    }
    for config in [at([node.addr()]).password(&*right), named(&right)] {
        let locker = RedisLocker::connect(config).unwrap();
        let shown = format!("{locker:?} {:?}", locker.nodes());
        assert!(!shown.contains("secret"), "{shown}");
        acquire_lock(&locker, &unique_key("open"))
            .release()
            .unwrap();
        assert!(locker.nodes().shutdown(LIMIT));
    }
    assert!(captured_log().mentions(&node.addr()));
    assert!(!captured_log().mentions(&right) && !captured_log().mentions(&wrong));
}

#[test]
fn credentials_provider_is_called_at_each_connect() {
    let node = Server::start().unwrap();
    let set_password = |password: &str| {
        let rights = ["resetpass", password, "~*", "&*", "+@all"];
        ask::<()>(
            &node,
            &[&["ACL", "SETUSER", "rotates", "on"], &rights[..]].concat(),
        );
    };
    let cut = || {
        let killed: u64 = ask(&node, &["CLIENT", "KILL", "USER", "rotates"]);
        killed
    };
    set_password(">first-secret");
    let current = Arc::new(Mutex::new("first-secret"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let config = at([node.addr()]).credentials({
        let (current, asked) = (Arc::clone(&current), Arc::clone(&asked));
        move |name| {
            asked.lock().unwrap().push(name.to_owned());
            let password = *current.lock().unwrap();
            assert_ne!(password, "", "it panics");
            Credentials::new("rotates", password)
        }
    });
    assert!(!format!("{config:?}").contains("secret"));
    let locker = RedisLocker::connect(config).unwrap();
    let kept = LockOptions::new(LIMIT).auto_renew(true);
    let kept = locker.acquire(&unique_key("kept"), &kept).unwrap();
    check_listener(&locker, &node);
    set_password(">second-secret");
    // A refused login, and a password function that panics, fail one connect each.
    let node_cause = || locker.nodes().health().nodes[0].cause.clone();
    assert!(cut() > 0);
    eventually(LIMIT, "the former password is refused", || {
        matches!(node_cause(), Some(NodeFailure::AccessDenied(_)))
    });
    *current.lock().unwrap() = "";
    eventually(LIMIT, "the function panics", || {
        node_cause().is_some_and(|cause| cause.to_string().contains("Config::credentials"))
    });
    *current.lock().unwrap() = "second-secret";
    wait_until_it_grants(&locker, &node);
    kept.check().unwrap();
    assert!(kept.is_held());
    kept.release().unwrap();
    let asked = asked.lock().unwrap();
    assert!(asked.len() > 3 && asked.iter().all(|name| *name == node.addr()));
}

/// Checks that the connection of the listener logs in by the provider, too.
fn check_listener(locker: &RedisLocker, node: &Server) {
    let key = &unique_key("listened-at");
    let held = acquire_lock(locker, key);
    thread::scope(|scope| {
        let other = RedisLocker::connect(
            at([node.addr()])
                .credentials(|_| Credentials::new("rotates", "first-secret"))
                .retry(sluggish()),
        )
        .unwrap();
        let waits = scope.spawn(move || acquire_lock(&other, key).release().unwrap());
        eventually(LIMIT, "the waiter is subscribed", || {
            subscribers(node, key) == 1
        });
        held.release().unwrap();
        waits.join().unwrap();
    });
}

/// Returns the README's lines of rights in order: for exclusive locks, read-write locks, fencing,
/// semaphores, wake-ups, and the waiting list, without the user's name and password.
fn readme() -> [Vec<&'static str>; 6] {
    let text = include_str!("../../../README.md");
    let lines = text.lines().filter_map(|line| {
        let words = line.strip_prefix("ACL SETUSER locks ")?.split(' ');
        let ignored = ["on", "resetchannels"]; // `grant` says them
        Some(words.filter(move |word| !ignored.contains(word) && !word.starts_with('>')))
    });
    let lines: Vec<Vec<&str>> = lines.map(Iterator::collect).collect();
    lines.try_into().expect("six lines in the README")
}

#[test]
fn guide_has_the_rights_of_the_readme() {
    let lines = |text: &'static str| -> Vec<&str> {
        let lines = text.lines();
        lines
            .filter(|line| line.starts_with("ACL SETUSER locks "))
            .collect()
    };
    let guide = include_str!("../../../src/guide/operations.md");
    assert_eq!(lines(guide), lines(include_str!("../../../README.md")));
}

fn grant(node: &Server, user: &str, rights: &[&str]) {
    // Redis 6.2 allows all channels by default, and then takes no pattern.
    let start = [
        "ACL",
        "SETUSER",
        user,
        "reset",
        "resetchannels",
        "on",
        ">pass",
    ];
    ask::<()>(node, &[&start[..], rights].concat());
}

fn as_user(node: &Server, user: &str) -> Config {
    at([node.addr()]).username(user).password("pass")
}

/// Returns the commands, keys and channels that a user was denied.
fn refusals(node: &Server, user: &str) -> Vec<String> {
    let log: Vec<HashMap<String, redis::Value>> = ask(node, &["ACL", "LOG", "1000"]);
    let text = |entry: &HashMap<String, redis::Value>, field: &str| -> String {
        redis::from_redis_value(entry[field].clone()).unwrap()
    };
    let theirs = log.iter().filter(|entry| text(entry, "username") == user);
    theirs.map(|entry| text(entry, "object")).collect()
}

/// Sends each kind of request once, with a reconnect in between.
fn every_request(node: &Server, config: Config) -> Result<(), Error> {
    let key = unique_key("acl");
    let locker = RedisLocker::connect(config.clone())?;
    let guard = locker.try_lock(&key, TTL)?.unwrap();
    assert!(RedisLocker::connect(config)?.try_lock(&key, TTL)?.is_none());
    guard.extend(2 * TTL)?;
    let user = ["CLIENT", "KILL", "USER", USER];
    assert!(ask::<u32>(node, &user) > 0);
    locker.lock(&unique_key("acl"), TTL)?.release()?;
    guard.release()
}

/// Sends each kind of request for read-write locks once, including refused requests.
fn every_rw_request(_: &Server, config: Config) -> Result<(), Error> {
    let key = unique_key("acl");
    let locker = RedisRwLocker::connect(config.clone())?;
    let other = RedisRwLocker::connect(config)?;
    let brief = LockOptions::new(TTL).wait_for(Duration::from_millis(100));
    let writing = locker.write(&key, TTL)?;
    assert!(other.try_acquire_read(&key, &brief)?.is_none());
    assert!(other.try_acquire_write(&key, &brief)?.is_none());
    writing.extend(TTL)?;
    let reading = writing.downgrade()?;
    // A denied downgrade has been repaired by now, or reported as impossible.
    reading.extend(2 * TTL)?;
    let beside = other.read(&key, TTL)?;
    assert!(other.try_acquire_write(&key, &brief)?.is_none());
    reading.release()?;
    beside.release()
}

fn every_fenced_request(node: &Server, config: Config) -> Result<(), Error> {
    let fenced = LockOptions::new(TTL).fencing(true);
    let locker = RedisLocker::connect(config.clone())?;
    for _ in 0..2 {
        let guard = locker.acquire(&unique_key("acl"), &fenced)?;
        assert!(guard.fencing_token().is_some());
        guard.release()?;
    }
    every_request(node, config)
}

/// Sends each kind of request for a permit once, including a refused request.
fn every_request_for_permits(_: &Server, config: Config) -> Result<(), Error> {
    let name = unique_key("acl");
    let once = LockOptions::new(TTL);
    let semaphore = RedisSemaphore::connect(config.clone(), &name, 1)?;
    let permit = semaphore.acquire(&once)?;
    let other = RedisSemaphore::connect(config, &name, 1)?;
    assert!(other.try_acquire(&once)?.is_none());
    permit.extend(2 * TTL)?;
    permit.release()
}

#[test]
fn acl_user_needs_exactly_the_rights_of_the_readme() {
    let [least, rw, fenced, permits, ..] = readme();
    type Requests = fn(&Server, Config) -> Result<(), Error>;
    let none = Vec::new();
    let kinds: [(&Vec<&str>, Requests); 4] = [
        (&none, every_request),
        (&rw, every_rw_request),
        (&fenced, every_fenced_request),
        (&permits, every_request_for_permits),
    ];
    // A caller waits for each denied request, so each kind has a node of its own, and all run in
    // parallel.
    thread::scope(|scope| {
        for (besides, every) in kinds {
            let least = &least;
            scope.spawn(move || no_more_and_no_less(least, besides, every));
        }
    });
}

fn no_more_and_no_less(
    least: &[&str],
    besides: &[&str],
    every: impl Fn(&Server, Config) -> Result<(), Error>,
) {
    let node = &servers(1)[0];
    let patient = as_user(node, USER);
    let policy = RetryPolicy {
        max_outage: REFUSED,
        ..with_short_timeouts()
    };
    let config = patient.clone().retry(policy);
    let config = config.node_timeout(REFUSED).connect_timeout(REFUSED);
    grant(node, USER, &[least, besides].concat());
    every(node, patient).unwrap();
    for left_out in if besides.is_empty() { least } else { besides } {
        let rights = least.iter().chain(besides).copied();
        let rights: Vec<&str> = rights.filter(|one| one != left_out).collect();
        grant(node, USER, &rights);
        if *left_out == "+client|kill" {
            every(node, config.clone()).unwrap(); // the log warns of it
            continue;
        }
        let refused = || causes(every(node, config.clone()).expect_err(left_out));
        let mut causes = refused();
        // On a busy machine the request may time out before the node denies it.
        for _ in 0..10 {
            if causes[0].failure == NodeFailure::TimedOut {
                causes = refused();
            }
        }
        let is_plain = matches!(&causes[0].failure, NodeFailure::AccessDenied(_));
        assert!(is_plain, "without {left_out}: {causes:?}");
    }
}

/// A user without dangerous commands, as many hosting services grant.
const ALL_BUT_DANGEROUS: [&str; 5] = ["~*", "&*", "+@all", "-@dangerous", "+info"];

#[test]
fn reconnect_without_the_right_to_kill_the_former_connection_works_and_is_warned_about_once() {
    captured_log();
    let warnings = |node: &Server| {
        let lines = captured_log().lines(Level::Warn, &node.addr());
        let about = lines.iter().filter(|line| line.contains("CLIENT KILL"));
        about.count()
    };
    for is_withdrawn in [false, true] {
        let node = &servers(1)[0];
        let rights: &[&str] = match is_withdrawn {
            false => &ALL_BUT_DANGEROUS,
            true => &["~*", "&*", "+@all"],
        };
        grant(node, USER, rights);
        let locker = RedisLocker::connect(as_user(node, USER)).unwrap();
        acquire_lock(&locker, &unique_key("first"))
            .release()
            .unwrap();
        assert_eq!(warnings(node), usize::from(!is_withdrawn), "at connect");
        if is_withdrawn {
            // The server also ends the connection of a user that lost a right.
            grant(node, USER, &ALL_BUT_DANGEROUS);
        }
        for _ in 0..3 {
            let _: u32 = ask(node, &["CLIENT", "KILL", "USER", USER]);
            acquire_lock(&locker, &unique_key("again"))
                .release()
                .unwrap();
        }
        eventually(LIMIT, "the warning is logged", || warnings(node) > 0);
        assert_eq!(warnings(node), 1);
        let health = locker.nodes().health();
        assert!(matches!(health.nodes[0].state, NodeState::Up), "{health:?}");
    }
}

#[test]
fn connect_to_a_server_without_room_is_no_denial() {
    let options = Server::options().arg("--requirepass", "pass");
    let node = options.arg("--maxclients", "4").start().unwrap();
    let mut full = Vec::new();
    eventually(LIMIT, "four clients leave no room", || {
        let mut stream = TcpStream::connect(node.addr()).unwrap();
        stream.set_read_timeout(Some(REFUSED / 20)).unwrap();
        let is_refused = stream.read(&mut [0; 64]).is_ok_and(|len| len > 0);
        if !is_refused {
            full.push(stream);
        }
        // The connection that showed that the server is up may still be counted.
        is_refused && full.len() >= 4
    });
    for password in [None, Some("pass"), Some("wrong")] {
        let mut config = at([node.addr()])
            .node_timeout(REFUSED)
            .connect_timeout(REFUSED);
        if let Some(password) = password {
            config = config.password(password);
        }
        let error = Nodes::connect(config.clone()).unwrap_err();
        let cause = causes(error)[0].failure.clone();
        assert!(
            matches!(&cause, NodeFailure::ServerError(text) if text.contains("max number of clients")),
            "{cause}"
        );
        Nodes::connect(config.allow_degraded(true)).unwrap();
    }
    drop(full);
    let config = at([node.addr()]).password("pass");
    let locker = RedisLocker::connect(config).unwrap();
    acquire_lock(&locker, &unique_key("room"))
        .release()
        .unwrap();
}

#[test]
fn acl_user_with_all_readme_rights_is_denied_nothing_under_any_prefix() {
    let node = &servers(1)[0];
    for (prefix, db) in [("redguard:", 0), ("billing:", 3)] {
        let rights = readme().concat().join(" ").replace("redguard:", prefix);
        let mut rights: Vec<&str> = rights.split(' ').collect();
        if db > 0 {
            rights.push("+select");
        }
        grant(node, USER, &rights);
        let config = as_user(node, USER).key_prefix(prefix).db(db);
        every_request(node, config.clone()).unwrap();
        every_rw_request(node, config.clone()).unwrap();
        every_fenced_request(node, config.clone()).unwrap();
        // A lock that is renewed while another caller waits.
        let [holder, waiter] = [(); 2].map(|()| RedisRwLocker::connect(config.clone()).unwrap());
        let key = unique_key("acl");
        let renewed = LockOptions::new(BRIEF).auto_renew(true);
        let writing = holder.acquire_write(&key, &renewed).unwrap();
        let waits = renewed.clone().wait_for(BRIEF);
        assert!(
            waiter
                .acquire_read(&key, &waits)
                .unwrap_err()
                .is_contended()
        );
        writing.check().unwrap();
        writing.release().unwrap();
    }
    // Rights whose denial is harmless: to set the client's name and library, and to kill clients.
    let mut refused = refusals(node, USER);
    refused.retain(|what| !["client|setinfo", "punsubscribe"].contains(&&**what));
    assert!(refused.is_empty(), "{refused:?}");
}

// Errors of one key do not affect others.

/// Returns since when the only node is connected.
fn up_since(locker: &RedisLocker) -> std::time::Instant {
    let health = locker.nodes().health();
    assert_eq!(health.nodes[0].state, NodeState::Up);
    health.nodes[0].since
}

/// Waits until the node has renewed the lock: the remaining TTL grows.
fn is_renewed(node: &Server, key: &str) {
    let mut left = pttl(node, key);
    eventually(LIMIT, "the lock is renewed", || {
        let before = std::mem::replace(&mut left, pttl(node, key));
        left > before && before > 0
    });
}

#[test]
fn name_without_rights_affects_no_other_lock_and_is_warned_about_once() {
    captured_log();
    let node = &servers(1)[0];
    let ours = unique_key("ours");
    let keys = format!("~redguard:{ours}*");
    let keys_in_braces = format!("~{{redguard:{ours}*");
    grant(node, USER, &["+@all", "&*", &keys, &keys_in_braces]);
    let locker = RedisLocker::connect(as_user(node, USER)).unwrap();
    let nodes = locker.nodes();
    let kept_key = format!("{ours}-kept");
    let renewed = LockOptions::new(BRIEF).auto_renew(true);
    let kept = locker.acquire(&kept_key, &renewed).unwrap();
    let since = up_since(&locker);
    let rw = RedisRwLocker::new(nodes);
    let name = unique_key("theirs");
    let semaphore = RedisSemaphore::new(nodes, &name, 2).unwrap();
    let once = LockOptions::new(TTL);
    let fenced = LockOptions::new(TTL).fencing(true);
    for _ in 0..10 {
        let errors = [
            locker.try_lock(&name, TTL).unwrap_err(),
            locker.try_acquire(&name, &fenced).unwrap_err(),
            locker.try_acquire_all(&[&name, &ours], &once).unwrap_err(),
            rw.try_read(&name, TTL).unwrap_err(),
            rw.try_write(&name, TTL).unwrap_err(),
            semaphore.try_acquire(&once).unwrap_err(),
        ];
        for error in errors {
            let causes = causes(error);
            assert!(
                matches!(causes[0].failure, NodeFailure::AccessDenied(_)),
                "{causes:?}"
            );
            acquire_lock(&locker, &format!("{ours}-other"))
                .release()
                .unwrap();
        }
    }
    is_renewed(node, &kept_key);
    assert_eq!(up_since(&locker), since, "no connection was closed");
    kept.release().unwrap();
    let warned = captured_log().lines(Level::Warn, &name);
    // Once for each kind of lock: a lock, a read and a write lock, a permit.
    assert_eq!(warned.len(), 4, "{warned:?}");
}

#[test]
fn denied_release_affects_no_other_lock_and_succeeds_when_allowed() {
    captured_log();
    let node = &servers(1)[0];
    let all = ["+@all", "&*", "~*"];
    grant(node, USER, &all);
    let locker = RedisLocker::connect(as_user(node, USER)).unwrap();
    let rw = RedisRwLocker::new(locker.nodes());
    let kept_key = unique_key("kept");
    let renewed = LockOptions::new(BRIEF).auto_renew(true);
    let kept = locker.acquire(&kept_key, &renewed).unwrap();
    let since = up_since(&locker);
    let keys: Vec<String> = (0..20).map(|_| unique_key("denied")).collect();
    // A script denies the command inside it, or is denied as a whole: the result is the same.
    for denied in ["-del", "-evalsha"] {
        ask::<()>(node, &["ACL", "SETUSER", USER, denied]);
        for key in &keys {
            let causes = causes(acquire_lock(&locker, key).release().unwrap_err());
            assert!(
                matches!(causes[0].failure, NodeFailure::AccessDenied(_)),
                "{causes:?}"
            );
            let again = locker.try_lock(key, TTL).unwrap();
            assert!(again.is_none(), "it is there yet");
            let other = locker.try_lock(&unique_key("other"), TTL).unwrap();
            assert!(other.is_some_and(|other| other.is_held()));
        }
        ask::<()>(node, &["ACL", "SETUSER", USER, "+@all"]);
        keys.iter()
            .for_each(|key| nowhere(std::slice::from_ref(node), key));
    }
    rw.write(&keys[0], TTL).unwrap().release().unwrap();
    is_renewed(node, &kept_key);
    assert_eq!(up_since(&locker), since, "no connection was closed");
    kept.release().unwrap();
    let warned = captured_log().lines(Level::Warn, &node.addr());
    let told = warned
        .iter()
        .filter(|line| line.contains("release refused"));
    assert_eq!(told.count(), 2, "once for each cause: {warned:?}");
}

/// A guard of any kind of lock.
enum Held {
    Lock(LockGuard),
    Read(ReadGuard),
    Write(WriteGuard),
    Permit(SemaphorePermit),
}

#[test]
fn extension_denied_inside_a_script_keeps_the_lock() {
    let node = &servers(1)[0];
    let all = ["+@all", "&*", "~*"];
    grant(node, USER, &all);
    let locker = RedisLocker::connect(as_user(node, USER)).unwrap();
    let rival = connect(std::slice::from_ref(node));
    let [rw, rival_rw] = [&locker, &rival].map(|locker| RedisRwLocker::new(locker.nodes()));
    let one_permit = |locker: &RedisLocker, name: &str| {
        let semaphore = RedisSemaphore::new(locker.nodes(), name, 1);
        semaphore.unwrap()
    };
    let once = LockOptions::new(TTL);
    for right in [
        "get",
        "set",
        "del",
        "pttl",
        "pexpire",
        "time",
        "zadd",
        "zscore",
        "zremrangebyscore",
        "hset",
        "hdel",
        "hget",
    ] {
        for kind in 0..5 {
            let key = unique_key("denied");
            let held = match kind {
                0 => Held::Lock(locker.lock(&key, TTL).unwrap()),
                1 => Held::Read(rw.read(&key, TTL).unwrap()),
                2 | 3 => Held::Write(rw.write(&key, TTL).unwrap()),
                _ => Held::Permit(one_permit(&locker, &key).acquire(&once).unwrap()),
            };
            let denied = format!("-{right}");
            ask::<()>(node, &["ACL", "SETUSER", USER, &denied]);
            // Whether or not that succeeds.
            let held = match held {
                Held::Write(guard) if kind == 3 => Held::Read(guard.downgrade().unwrap()),
                held => held,
            };
            _ = match &held {
                Held::Lock(guard) => guard.extend(2 * TTL),
                Held::Read(guard) => guard.extend(2 * TTL),
                Held::Write(guard) => guard.extend(2 * TTL),
                Held::Permit(permit) => permit.extend(2 * TTL),
            };
            let is_free = match &held {
                Held::Lock(_) => rival.try_lock(&key, TTL).unwrap().is_some(),
                Held::Read(_) | Held::Write(_) => rival_rw.try_write(&key, TTL).unwrap().is_some(),
                Held::Permit(_) => {
                    let semaphore = one_permit(&rival, &key);
                    semaphore.try_acquire(&once).unwrap().is_some()
                }
            };
            ask::<()>(node, &["ACL", "SETUSER", USER, &format!("+{right}")]);
            assert!(!is_free, "{denied}, kind {kind}");
        }
    }
}

#[test]
fn release_succeeds_where_the_turn_of_waiting_readers_is_denied() {
    let node = &servers(1)[0];
    grant(node, USER, &["+@all", "&*", "~*"]);
    let rw = RedisRwLocker::connect(as_user(node, USER)).unwrap();
    let rival = RedisRwLocker::new(connect(std::slice::from_ref(node)).nodes());
    for is_downgraded in [false, true] {
        let key = unique_key("turn");
        let writer = rw.write(&key, TTL).unwrap();
        let turn = format!("{{{}}}:turn", wire(&key));
        thread::scope(|scope| {
            let patient = LockOptions::new(TTL).wait_for(LIMIT);
            let (rival, key) = (&rival, &key);
            let waits = scope.spawn(move || rival.acquire_read(key, &patient));
            eventually(LIMIT, "the reader leaves its marker", || {
                let mark: Option<String> = ask(node, &["GET", &turn]);
                mark.is_some()
            });
            ask::<()>(node, &["ACL", "SETUSER", USER, "-set"]);
            if is_downgraded {
                writer.downgrade().unwrap().release().unwrap();
            } else {
                writer.release().unwrap();
            }
            ask::<()>(node, &["ACL", "SETUSER", USER, "+set"]);
            waits.join().unwrap().unwrap().release().unwrap();
        });
    }
}

#[cfg(feature = "cluster")]
#[test]
fn unserved_slot_affects_no_lock_in_another() {
    let options = Server::options().arg("--cluster-enabled", "yes");
    let options = options.arg("--cluster-require-full-coverage", "no");
    let node = options.start().unwrap();
    let key = unique_key("nowhere");
    let slot: u32 = ask(
        &node,
        &["CLUSTER", "KEYSLOT", &crate::support::fixtures::wire(&key)],
    );
    let slots = (0..16_384).filter(|other| *other != slot);
    let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
    let slots: Vec<&str> = slots.iter().map(String::as_str).collect();
    ask::<()>(&node, &[&["CLUSTER", "ADDSLOTS"], &slots[..]].concat());
    eventually(LIMIT, "the cluster is up", || {
        ask::<String>(&node, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
    let locker =
        RedisLocker::connect(Config::new([redguard::Endpoint::cluster([node.addr()])])).unwrap();
    let kept = acquire_lock(&locker, &unique_key("kept"));
    let since = up_since(&locker);
    for _ in 0..20 {
        let causes = causes(locker.try_lock(&key, TTL).unwrap_err());
        let is_plain = matches!(&causes[0].failure, NodeFailure::ServerError(words) if words.contains("CLUSTERDOWN"));
        assert!(is_plain, "{causes:?}");
        acquire_lock(&locker, &unique_key("other"))
            .release()
            .unwrap();
        kept.extend(TTL).unwrap();
    }
    assert_eq!(up_since(&locker), since, "no connection was closed");
}

// Wake-ups.

#[test]
fn a_user_with_the_rights_of_the_readme_is_woken() {
    let [least, .., wakes, list] = readme();
    // Without the rights for the waiting list, each release wakes all waiters.
    for (list, places) in [(Vec::new(), 0), (list, 1)] {
        let rights = [&least[..], &wakes, &list].concat();
        is_woken_with_places(&rights, places);
    }
}

/// Lets a process with these rights wait, with this number of places in the waiting list.
fn is_woken_with_places(rights: &[&str], places: u64) {
    let node = &servers(1)[0];
    grant(node, USER, rights);
    let config = as_user(node, USER).retry(sluggish());
    let [holder, waiter] = [(); 2].map(|()| RedisLocker::connect(config.clone()).unwrap());
    let key = unique_key("hears");
    let held = holder.lock(&key, TTL).unwrap();
    let pings = calls(node, "ping");
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock(&key, TTL));
        eventually(LIMIT, "the waiter is subscribed", || {
            subscribers(node, &key) == 1
        });
        eventually(LIMIT, "it asks for a sign of life", || {
            calls(node, "ping") > pings
        });
        let list = format!("{{redguard:{key}}}:waiting");
        assert_eq!(ask::<u64>(node, &["ZCARD", &list]), places);
        let began = now();
        held.release().unwrap();
        waits.join().unwrap().unwrap().release().unwrap();
        assert_no_timeout_elapsed(began);
    });
    eventually(LIMIT, "no subscription is left", || {
        subscribers(node, &key) == 0
    });
}

#[test]
fn subscription_without_a_right_is_denied_and_waits_end_by_time() {
    let node = &servers(1)[0];
    let [least, .., wakes, _] = readme();
    assert_eq!(wakes.len(), 5);
    thread::scope(|scope| {
        for left_out in &wakes {
            let least = &least;
            let wakes = &wakes;
            scope.spawn(move || {
                let user = unique_key("mute");
                let rights = wakes.iter().filter(|one| *one != left_out);
                let rights: Vec<&str> = least.iter().chain(rights).copied().collect();
                grant(node, &user, &rights);
                let config = config(std::slice::from_ref(node))
                    .username(&*user)
                    .password("pass");
                let [holder, waiter] =
                    [(); 2].map(|()| RedisLocker::connect(config.clone()).unwrap());
                let [key, other] = ["mute", "other"].map(unique_key);
                // Denials that name no command name a channel.
                let refused = left_out.strip_prefix('+').unwrap_or("redguard:");
                let is_refused = || {
                    let refusals = refusals(node, &user);
                    refusals.iter().any(|what| what.starts_with(refused))
                };
                let held = holder.lock(&key, TTL).unwrap();
                let others = holder.lock(&other, TTL).unwrap();
                thread::scope(|scope| {
                    let waits = scope.spawn(|| waiter.lock(&key, TTL));
                    // While a waiter needs another lock, the subscription to this lock ends on its
                    // own.
                    let waits_on = scope.spawn(|| waiter.lock(&other, TTL));
                    match refused {
                        "publish" | "unsubscribe" => {
                            eventually(LIMIT, "the waiter is subscribed", || {
                                subscribers(node, &key) == 1
                            });
                        }
                        _ => eventually(LIMIT, left_out, is_refused),
                    }
                    held.release().unwrap();
                    waits.join().unwrap().unwrap().release().unwrap();
                    eventually(LIMIT, left_out, is_refused);
                    others.release().unwrap();
                    waits_on.join().unwrap().unwrap().release().unwrap();
                });
                wait_until_it_grants(&waiter, node);
            });
        }
    });
}
