//! The tools of `support` do what their names say: a test that relies on a broken tool would prove
//! nothing.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests of the tools that the other tests wait with"
)]

use std::io;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::support::clock::{Clock, lead};
use crate::support::log_capture::{Level, captured_log};
use crate::support::proxy::{Door, Flow, Proxy};
use crate::support::servers::Server;
use crate::support::witness::{Journal, Witness};
use crate::support::{eventually, raw, unique_key, witness};

/// Only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(20);
/// Wait for an event that must not happen; a late event lets the test pass, never fail.
const QUIET: Duration = Duration::from_millis(50);

/// Client of the server at `addr` that sends inline commands.
struct Client(TcpStream);

impl Client {
    fn to(addr: &str) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client(stream)
    }

    fn say(&mut self, command: &str) {
        self.0
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
    }

    /// Returns the next `len` bytes, or fewer at the end of the stream.
    fn hear(&mut self, len: usize) -> String {
        let mut bytes = Vec::new();
        _ = (&self.0).take(len as u64).read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    fn hears_nothing(&mut self) -> bool {
        self.0.set_read_timeout(Some(QUIET)).unwrap();
        let result = self.0.read(&mut [0]);
        self.0.set_read_timeout(Some(LIMIT)).unwrap();
        matches!(result, Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    fn ping(&mut self) -> String {
        self.say("PING");
        self.hear(7)
    }
}

const PONG: &str = "+PONG\r\n";

#[test]
fn a_proxy_passes_delays_and_counts() {
    let server = Server::start().unwrap();
    let proxy = Proxy::to(server.addr());
    let mut client = Client::to(&proxy.addr());
    assert_eq!(client.ping(), PONG);
    assert_eq!(
        (
            proxy.request_bytes(),
            proxy.reply_bytes(),
            proxy.accepted(),
            proxy.open()
        ),
        (6, 7, 1, 1)
    );
    let latency = Duration::from_millis(80);
    for (requests, replies, least) in [
        (latency, Duration::ZERO, 1),
        (Duration::ZERO, latency, 1),
        (latency, latency, 2),
    ] {
        proxy.requests(Flow::Delay(requests));
        proxy.replies(Flow::Delay(replies));
        let start = Instant::now();
        // A latency: bytes that are in flight together arrive together.
        for _ in 0..20 {
            client.say("PING");
        }
        assert_eq!(client.hear(7 * 20), PONG.repeat(20));
        assert!(
            start.elapsed() >= latency * least && start.elapsed() < latency * 19,
            "{:?}",
            start.elapsed()
        );
    }
    proxy.both(Flow::Delay(LIMIT));
    client.say("PING");
    assert!(client.hears_nothing());
    proxy.pass();
    assert_eq!(client.hear(7), PONG);
    drop(client);
    eventually(LIMIT, "the connection has ended", || proxy.open() == 0);
}

#[test]
fn held_bytes_arrive_late_and_swallowed_bytes_never() {
    let server = Server::start().unwrap();
    let proxy = Proxy::to(server.addr());
    let [late, lost, unheard] = ["late", "lost", "unheard"].map(unique_key);
    let exists = |key: &str| {
        redis::cmd("EXISTS")
            .arg(key)
            .query::<bool>(&mut raw(&server))
            .unwrap()
    };

    proxy.requests(Flow::Hold);
    let mut held = Client::to(&proxy.addr());
    held.say(&format!("SET {late} 1"));
    // Closed before its request arrives, as by a client that timed out.
    drop(held);
    eventually(LIMIT, "the request is at the proxy", || {
        proxy.request_bytes() > 0
    });
    assert!(!exists(&late));
    proxy.pass();
    eventually(LIMIT, "the late request is executed", || exists(&late));

    let mut client = Client::to(&proxy.addr());
    assert_eq!(client.ping(), PONG);
    proxy.requests(Flow::Swallow);
    client.say(&format!("SET {lost} 1"));
    assert!(client.hears_nothing());
    proxy.pass();
    client.say("PING");
    assert!(client.hears_nothing() && !exists(&lost));
    assert_eq!(Client::to(&proxy.addr()).ping(), PONG);

    proxy.replies(Flow::Swallow);
    let mut deaf = Client::to(&proxy.addr());
    deaf.say(&format!("SET {unheard} 1"));
    eventually(LIMIT, "the request is executed", || exists(&unheard));
    assert!(deaf.hears_nothing());
}

#[test]
fn a_proxy_cuts_now_and_within_a_reply() {
    let server = Server::start().unwrap();
    let proxy = Proxy::to(server.addr());
    let mut client = Client::to(&proxy.addr());
    assert_eq!(client.ping(), PONG);
    proxy.cut();
    assert_eq!((client.hear(1), proxy.open()), (String::new(), 0));
    for n in [0, 3, 7, 10] {
        let mut client = Client::to(&proxy.addr());
        let key = unique_key("cut");
        assert_eq!(client.ping(), PONG);
        proxy.cut_reply_after(n);
        client.say("PING");
        client.say(&format!("SET {key} 1"));
        assert_eq!(client.hear(100), "+PONG\r\n+OK\r\n"[..n]);
        assert_eq!(Client::to(&proxy.addr()).ping(), PONG);
    }
}

#[test]
fn a_door_slams_shuts_and_opens_again() {
    let server = Server::start().unwrap();
    let proxy = Proxy::to(server.addr());
    let mut client = Client::to(&proxy.addr());
    assert_eq!(client.ping(), PONG);
    proxy.door(Door::Slam);
    assert_eq!(Client::to(&proxy.addr()).hear(1), "");
    for _ in 0..3 {
        proxy.door(Door::Shut);
        assert_eq!(
            TcpStream::connect(proxy.addr()).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        proxy.door(Door::Open);
        assert_eq!(Client::to(&proxy.addr()).ping(), PONG);
    }
    assert_eq!(client.ping(), PONG);
    server.kill();
    assert_eq!(Client::to(&proxy.addr()).hear(1), "");
}

#[test]
fn a_proxy_ends_promptly_whatever_it_does() {
    let server = Server::start().unwrap();
    for flow in [
        Flow::Pass,
        Flow::Delay(LIMIT * 10),
        Flow::Hold,
        Flow::Swallow,
    ] {
        let proxy = Proxy::to(server.addr());
        let mut client = Client::to(&proxy.addr());
        proxy.both(flow);
        client.say("PING");
        let start = Instant::now();
        drop(proxy);
        assert!(start.elapsed() < LIMIT / 10, "{flow:?}");
        // If everything passes, the reply may arrive first.
        assert!(["", PONG].contains(&&*client.hear(7)));
    }
}

#[test]
fn clock_step_moves_uptimes_and_expiries_at_once() {
    let Some(clock) = Clock::new() else { return };
    let server = clock.drive(Server::options()).start().unwrap();
    let mut client = raw(&server);
    let mut ask = |words: &[&str]| -> i64 {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut client).unwrap()
    };
    assert!(lead(&server) < LIMIT);
    ask(&["SADD", "key", "member"]);
    ask(&["PEXPIRE", "key", "1000000"]);
    clock.behind(50 * LIMIT);
    assert_eq!(lead(&server), Duration::ZERO);
    let left = ask(&["PTTL", "key"]);
    assert!((1_900_000..=2_000_000).contains(&left), "{left}");
    clock.ahead(100 * LIMIT);
    let lead = lead(&server);
    assert!((99 * LIMIT..=100 * LIMIT).contains(&lead), "{lead:?}");
    assert_eq!(ask(&["PTTL", "key"]), -2);
}

#[test]
fn witness_reports_two_holders() {
    let witness = Witness::new();
    let key = unique_key("seen");
    drop((witness.enter_shared(&key), witness.enter_shared(&key)));
    drop(witness.enter(&key));
    assert_eq!(
        (
            witness.entries(&key),
            witness.most(&key),
            witness.overlaps()
        ),
        (3, 2, 0)
    );
    let inside = witness.enter(&key);
    _ = witness.enter(&unique_key("other"));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(witness.enter(&key)))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(witness.enter_shared(&key)))).is_err());
    drop(inside);
    drop(witness.enter(&key));
    assert_eq!((witness.overlaps(), witness.entries(&key)), (2, 7));
}

#[test]
fn journal_reports_overlaps_per_key() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path().join("journal"));
    assert_eq!(journal.check(), Ok(0));
    drop(journal.enter("a b"));
    drop((
        journal.enter_shared("a b"),
        journal.enter_shared("a b"),
        journal.enter("other"),
    ));
    drop(journal.enter("a b"));
    assert_eq!(journal.check(), Ok(5));
    // The short inner hold has ended when the third begins; the long hold has not.
    let long = journal.enter_shared("a b");
    drop(journal.enter("a b"));
    drop(journal.enter_shared("a b"));
    drop(journal.enter("a b"));
    drop(long);
    let conflicts = journal.check().unwrap_err();
    assert_eq!(conflicts.matches("overlaps").count(), 2, "{conflicts}");
    assert!(
        journal
            .holds()
            .iter()
            .all(|hold| hold.pid == std::process::id())
    );
}

#[test]
fn the_log_is_searched_by_level_and_text() {
    let key = unique_key("logged");
    let captured = captured_log();
    log::warn!("lost the lock {key}");
    log::trace!("a reply for {key}");
    assert_eq!(
        captured.lines(Level::Warn, &key),
        [format!("lost the lock {key}")]
    );
    assert!(captured.lines(Level::Error, &key).is_empty());
    assert!(
        captured.mentions(&format!("reply for {key}")) && !captured.mentions(&unique_key("silent"))
    );
}

#[test]
fn journal_reports_decreasing_tokens_and_bounds_holds_by_validity() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path().join("journal"));
    let hold = |holds: &[(&str, u64)]| {
        let each = holds.iter();
        each.for_each(|(key, fence)| journal.enter(key).fencing_token(Some(*fence)));
    };
    hold(&[("a", 7), ("b", 1), ("a", 9), ("b", 2)]);
    drop(journal.enter("a"));
    assert_eq!(journal.check(), Ok(5));
    let mut stale = journal.enter("a");
    let until = witness::now();
    // Another process holds the lock by now; the stopped process does not know.
    drop(journal.enter("a"));
    stale.until(until);
    drop(stale);
    let mut never = journal.enter("a");
    drop(journal.enter("a"));
    never.until(until);
    drop(never);
    assert_eq!(journal.check(), Ok(8));
    hold(&[("a", 8), ("a", 9), ("b", 3), ("a", 10)]);
    let found = journal.check().unwrap_err();
    assert_eq!(
        found.matches("has no smaller fencing token than").count(),
        2,
        "{found}"
    );
}
