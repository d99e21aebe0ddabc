//! Locks over TLS, and the errors if one side does not accept the other.

use std::io::Write as _;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

#[cfg(feature = "cluster")]
use redguard::Endpoint;
use redguard::{
    Config, Error, LockOptions, Locker, NodeFailure, Nodes, RedisLocker, RedisRwLocker,
    RetryPolicy, RwLocker, Tls, WatchOutcome,
};

use crate::support::fixtures::{
    BRIEF, LIMIT, TTL, acquire_lock, ask, at, connect_by, everywhere, now, nowhere, sluggish,
    subscribers, wait_until_it_grants,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::proxy::{Flow, Proxy};
use crate::support::servers::Server;
#[cfg(feature = "cluster")]
use crate::support::servers::free_port;
use crate::support::tls::{Ask, Authority, Identity, TlsServer};
use crate::support::{eventually, servers, unique_key};

const HERE: &str = "127.0.0.1";
/// Time limit for a node that hangs.
const HUNG: Duration = Duration::from_millis(300);
/// Time limit for a node that answers at once, on a busy machine.
const PROMPT: Duration = Duration::from_secs(3);

fn node(identity: &Identity, authority: &Authority, more: &[(&str, &str)]) -> TlsServer {
    TlsServer::start(identity, authority, Ask::No, more)
}

fn shown_by(identity: &Identity, tls: Tls) -> Tls {
    tls.client_certificate(&*identity.certificate, &*identity.key)
}

/// Returns the address and the cause of a failed node.
fn refused(config: Config) -> (String, NodeFailure) {
    match Nodes::connect(config) {
        Ok(_) => panic!("connected"),
        Err(Error::InsufficientQuorum { causes, .. }) => {
            (causes[0].node.clone(), causes[0].failure.clone())
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns the number of connections to the TLS port of a server.
fn connections(server: &Server, addr: &str) -> usize {
    let list: String = ask(server, &["CLIENT", "LIST"]);
    list.matches(&format!("laddr={addr} ")).count()
}

#[test]
fn locks_of_all_kinds_work_over_tls() {
    let ca = Authority::new("ours");
    let start = || node(&ca.signs(&[HERE, "localhost"]), &ca, &[]);
    let nodes = [(); 3].map(|()| start());
    let addresses = || nodes.iter().map(TlsServer::addr);
    let config = at(addresses()).tls(ca.trusted());
    let by_name = addresses().map(|addr| format!("rediss://{addr}/0").replace(HERE, "localhost"));
    let by_name = at(by_name).tls(ca.trusted()).retry(sluggish());
    let nodes = nodes.map(|node| (node.tls, node.server));
    let (tls, servers): (Vec<_>, Vec<_>) = nodes.into_iter().unzip();
    let locker = connect_by(config, &servers);
    let waiter = connect_by(by_name, &servers);
    for (server, tls) in servers.iter().zip(&tls) {
        assert_eq!(connections(server, &tls.addr()), 2);
        // The client that asks.
        assert_eq!(connections(server, &server.addr()), 1);
    }

    let key = unique_key("tls");
    let renewed = LockOptions::new(BRIEF).auto_renew(true);
    let held = locker.acquire(&key, &renewed).unwrap();
    everywhere(&servers, &key);
    assert!(waiter.try_lock(&key, TTL).unwrap().is_none());
    assert_eq!(held.watch().wait_ended(2 * BRIEF), WatchOutcome::TimedOut);
    held.check().unwrap();
    // Only a message explains that the waiter acquires the lock.
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock(&key, TTL));
        eventually(LIMIT, "the waiter is subscribed", || {
            subscribers(&servers[0], &key) == 1
        });
        held.release().unwrap();
        let guard = waits.join().unwrap().unwrap();
        guard.extend(2 * TTL).unwrap();
        guard.release().unwrap();
    });
    nowhere(&servers, &key);
    let fenced = LockOptions::new(TTL).fencing(true);
    let tokens = [&locker, &waiter].map(|locker| {
        let guard = locker.acquire(&key, &fenced).unwrap();
        let token = guard.fencing_token().unwrap();
        guard.release().unwrap();
        token
    });
    assert!(tokens[0] < tokens[1], "{tokens:?}");
    let rw = RedisRwLocker::new(locker.nodes());
    let reading = rw.write(&key, TTL).unwrap().downgrade().unwrap();
    assert!(rw.try_write(&key, TTL).unwrap().is_none());
    reading.release().unwrap();

    // One of three nodes hangs, dies and comes back.
    let without = |what: &str| {
        let guard = acquire_lock(&locker, &key);
        assert!(waiter.try_lock(&key, TTL).unwrap().is_none(), "{what}");
        guard.release().unwrap();
    };
    servers[1].stop().unwrap();
    without("hung");
    servers[1].kill();
    without("dead");
    servers[1].restart().unwrap();
    wait_until_it_grants(&locker, &servers[1]);
    wait_until_it_grants(&waiter, &servers[1]);
}

#[test]
fn client_certificate_is_presented_on_request() {
    let (ca, other) = (Authority::new("ours"), Authority::new("theirs"));
    let us = ca.signs(&["worker"]);
    // TLS 1.3 reports a refused client certificate after the handshake, 1.2 within it.
    thread::scope(|scope| {
        for versions in ["TLSv1.2", "TLSv1.3"] {
            let more = [("--tls-protocols", versions)];
            let node = TlsServer::start(&ca.signs(&[HERE]), &ca, Ask::Yes, &more);
            let config = at([node.addr()]);
            let locker = RedisLocker::connect(config.clone().tls(shown_by(&us, ca.trusted())));
            let guard = acquire_lock(&locker.unwrap(), &unique_key("shown"));
            guard.release().unwrap();
            let (ca, other) = (&ca, &other);
            scope.spawn(move || {
                let strangers = other.signs(&["worker"]);
                for (tls, reasons) in [
                    (ca.trusted(), ["CertificateRequired", "HandshakeFailure"]),
                    (shown_by(&strangers, ca.trusted()), ["UnknownCA"; 2]),
                ] {
                    let (name, cause) = refused(config.clone().connect_timeout(PROMPT).tls(tls));
                    assert_eq!(name, node.addr());
                    let is_reason = |text: &str| reasons.iter().any(|one| text.contains(one));
                    assert!(
                        matches!(&cause, NodeFailure::AccessDenied(text) if is_reason(text)),
                        "{versions}: {cause}"
                    );
                }
            });
        }
    });
}

#[test]
fn untrusted_or_plain_peer_is_reported_with_the_reason_and_no_secret() {
    captured_log();
    let password = unique_key("secret");
    let (ca, other) = (Authority::new("ours"), Authority::new("theirs"));
    let us = ca.signs(&["worker"]);
    let here = node(&ca.signs(&[HERE]), &ca, &[]);
    let elsewhere = node(&ca.signs(&["elsewhere.example"]), &ca, &[]);
    let locked = node(&ca.signs(&[HERE]), &ca, &[("--requirepass", "another")]);
    let plain = &servers(1)[0];
    let trusted = || shown_by(&us, ca.trusted());
    let named = |node: &TlsServer| at([format!("rediss://:{password}@{}", node.addr())]);
    let cases = [
        (named(&here).tls(other.trusted()), "UnknownIssuer", true),
        (named(&here), "UnknownIssuer", true),
        (named(&elsewhere).tls(trusted()), "elsewhere.example", true),
        (named(&locked).tls(trusted()), "WRONGPASS", true),
        (
            at([locked.addr()]).tls(trusted()).password(&*password),
            "WRONGPASS",
            true,
        ),
        (at([locked.addr()]).tls(trusted()), "NOAUTH", true),
        (
            at([here.addr()]).password(&*password),
            "a port for TLS?",
            false,
        ),
        (at([here.addr()]), "a port for TLS?", false),
        (
            at([plain.addr()]).tls(trusted()).password(&*password),
            "no answer in time",
            false,
        ),
    ];
    let lines = us.key.lines().filter(|line| !line.starts_with('-'));
    let secrets: Vec<&str> = lines.chain([&*password]).collect();
    assert!(secrets.len() > 3, "{} lines of a key", secrets.len() - 1);
    let is_secret = &|text: &str| secrets.iter().any(|secret| text.contains(secret));
    thread::scope(|scope| {
        for (config, reason, denied) in cases {
            scope.spawn(move || {
                let shown = format!("{config:?}");
                let begun = now();
                let error = Nodes::connect(config.connect_timeout(PROMPT)).unwrap_err();
                assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
                let shown = format!("{shown} {error} {error:?}");
                assert!(!is_secret(&shown), "{shown}");
                check_cause(&error, reason, denied);
            });
        }
    });
    // On a busy machine `connect` may end before the worker reports the cause.
    eventually(LIMIT, "the cause is reported", || {
        let told = captured_log().lines(Level::Info, &plain.addr());
        told.iter().any(|line| line.contains("a port for TLS?"))
    });
    let shown = use_and_shut_down(at([here.addr()]).tls(trusted()));
    assert!(!is_secret(&shown));
    assert!(captured_log().mentions(&here.addr()));
    for secret in &secrets {
        assert!(!captured_log().mentions(secret));
    }
}

/// Uses a connection that works, up to its last line in the log. Returns its `Debug` output.
fn use_and_shut_down(config: Config) -> String {
    let locker = RedisLocker::connect(config).unwrap();
    let guard = acquire_lock(&locker, &unique_key("open"));
    guard.release().unwrap();
    let shown = format!("{locker:?}");
    assert!(locker.nodes().shutdown(LIMIT));
    shown
}

/// Checks the cause of the only node in the error of a connect.
fn check_cause(error: &Error, reason: &str, denied: bool) {
    let Error::InsufficientQuorum { causes, .. } = error else {
        panic!("{error:?}");
    };
    assert!(causes[0].node.starts_with(HERE), "{error}");
    let failure = &causes[0].failure;
    assert!(failure.to_string().contains(reason), "{error}");
    let is_denied = matches!(failure, NodeFailure::AccessDenied(_));
    assert_eq!(is_denied, denied, "{error}");
}

/// Calls `work` with the address of a server that sends a part of its handshake.
fn with_half_handshake(work: impl Fn(String)) {
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            // The header of a record of 122 bytes, which contains a server hello.
            stream.write_all(b"\x16\x03\x03\x00\x7a\x02\x00").unwrap();
            // Until the client closes the connection.
            _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        work(address);
    });
}

#[test]
fn hung_tls_node_takes_at_most_its_timeout() {
    captured_log();
    let ca = Authority::new("ours");
    let node = node(&ca.signs(&[HERE]), &ca, &[]);
    let retry = RetryPolicy {
        max_outage: HUNG,
        ..RetryPolicy::default()
    };
    let brief = |address: String| {
        let config = at([address]).tls(ca.trusted()).node_timeout(HUNG);
        config.connect_timeout(HUNG).retry(retry.clone())
    };
    let in_time = |what: &str, work: &dyn Fn()| {
        let begun = now();
        work();
        assert!(begun.elapsed() < LIMIT, "{what}: {:?}", begun.elapsed());
    };
    let tells = |address: String, words: &str| {
        in_time(words, &|| {
            let (name, cause) = refused(brief(address.clone()));
            assert!(cause.to_string().contains(words), "{name}: {cause}");
        });
    };

    // Within the handshake: before its first byte, in its middle, and cut there.
    let proxy = Proxy::to(node.addr());
    proxy.replies(Flow::Hold);
    tells(proxy.addr(), "no answer in time");
    proxy.pass();
    in_time("in the middle", &|| {
        with_half_handshake(|half| tells(half, "no answer in time"));
    });
    proxy.cut_reply_after(20);
    let locker = RedisLocker::connect(brief(proxy.addr()).connect_timeout(LIMIT));
    drop(locker.unwrap());

    // On an open connection, and during a reconnect.
    let patient = brief(node.addr()).node_timeout(Duration::from_secs(2));
    let locker = RedisLocker::connect(patient.connect_timeout(LIMIT)).unwrap();
    let key = unique_key("hung");
    let guard = acquire_lock(&locker, &key);
    node.server.stop().unwrap();
    in_time("hung", &|| {
        assert!(guard.extend(TTL).unwrap_err().is_unavailable());
        assert!(
            locker
                .try_lock(&key, TTL)
                .is_ok_and(|guard| guard.is_none())
        );
        let other = unique_key("hung");
        assert!(locker.try_lock(&other, TTL).unwrap_err().is_unavailable());
        assert!(locker.lock(&other, TTL).unwrap_err().is_unavailable());
        // Callers do not wait for a worker, but the worker must not wait without limit either.
        eventually(LIMIT, "the worker closes the connection", || {
            let told = captured_log().lines(Level::Info, &node.addr());
            told.iter().any(|line| line.contains("unavailable: "))
        });
    });
    tells(node.addr(), "no answer in time");
    node.server.resume().unwrap();
    eventually(LIMIT, "the node is connected again", || {
        guard.extend(TTL).is_ok()
    });
    guard.release().unwrap();
    node.server.stop().unwrap();
    in_time("shut down", &|| _ = locker.nodes().shutdown(Duration::ZERO));
}

#[cfg(feature = "cluster")]
#[test]
fn cluster_members_are_reached_over_tls() {
    let ca = Authority::new("ours");
    let bus = free_port().unwrap().to_string();
    let more = [
        ("--cluster-enabled", "yes"),
        ("--cluster-port", &bus),
        ("--tls-cluster", "yes"),
    ];
    let one = node(&ca.signs(&[HERE]), &ca, &more);
    ask::<()>(&one.server, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually(LIMIT, "the cluster is healthy", || {
        ask::<String>(&one.server, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
    for seed in [one.addr(), format!("rediss://{}", one.addr())] {
        let before = connections(&one.server, &one.addr());
        let locker =
            RedisLocker::connect(at([Endpoint::cluster([seed])]).tls(ca.trusted())).unwrap();
        acquire_lock(&locker, &unique_key("tls")).release().unwrap();
        assert_eq!(connections(&one.server, &one.addr()), before + 1);
        _ = locker.nodes().shutdown(LIMIT);
    }
    let stranger = Authority::new("theirs");
    let config = at([Endpoint::cluster([one.addr()])]).tls(stranger.trusted());
    let (name, cause) = refused(config.connect_timeout(PROMPT));
    assert!(
        name == format!("cluster:{}", one.addr()) && matches!(cause, NodeFailure::AccessDenied(_)),
        "{cause}"
    );
}
