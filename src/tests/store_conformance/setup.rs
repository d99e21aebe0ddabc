//! The server of a conformance test, and the random steps that a test plays on it and on the node
//! model.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use redguard_servers::Server;
use redis::Connection;

use crate::config::builder::Config;
use crate::error::node_failure::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::time::clock;
use crate::transport::node::factory;
use crate::transport::node::traits::{Event, Session, Subscriber};

/// All times are multiples of this unit, so that the duration of the test itself does not matter.
pub(crate) const UNIT: Duration = Duration::from_secs(100);

/// A real server with a session, as a worker has it, and a separate connection for inspection.
pub(crate) struct ComparedServer {
    pub(crate) session: Box<dyn Session>,
    pub(crate) raw: Connection,
    server: Server,
}

impl ComparedServer {
    pub(crate) fn start() -> ComparedServer {
        let server = Server::start().unwrap();
        let settings = Config::new([server.addr()])
            .node_timeout(Duration::from_secs(5))
            .connect_timeout(Duration::from_secs(5))
            .validate()
            .unwrap();
        let (_, connector) = factory::make_connector(&settings.endpoints[0], &settings).unwrap();
        let (session, _) = connector.connect(None).unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        ComparedServer {
            session,
            raw: client.get_connection().unwrap(),
            server,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.server.addr().to_string()
    }

    /// Sends one request through the session and returns its reply.
    pub(crate) fn serve(&mut self, request: &Request) -> Reply {
        let mut reply = None;
        let requests = [Arc::new(request.clone())];
        self.session
            .send_batch(&requests, &mut |_, it| reply = Some(it))
            .unwrap();
        reply.unwrap()
    }

    /// Runs a command on the separate connection.
    pub(crate) fn run(&mut self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut self.raw).unwrap();
    }

    /// Plays random sequences of steps, each on the empty server.
    pub(crate) fn play_random<S: Clone + Debug>(
        self,
        cases: u32,
        sequences: impl Strategy<Value = Vec<S>>,
        play: impl Fn(&mut ComparedServer, &[S]),
    ) {
        let server = RefCell::new(self);
        let mut runner = TestRunner::new(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(cases)
        });
        let outcome = runner.run(&sequences, |steps| {
            let server = &mut *server.borrow_mut();
            server.run(&["FLUSHALL"]); // a failed case may have left keys
            play(server, &steps);
            Ok(())
        });
        outcome.unwrap();
    }
}

/// Calls `act` with a server and a function that returns the messages of the `channels` since its
/// last call.
pub(crate) fn with_messages(
    channels: &[Channel],
    act: impl FnOnce(ComparedServer, &dyn Fn() -> Vec<Event>),
) {
    let server = ComparedServer::start();
    let settings = Config::new([server.address()]).validate().unwrap();
    let (_, connector) = factory::make_connector(&settings.endpoints[0], &settings).unwrap();
    let once = RefCell::new(Some((server, act)));
    let ended = connector.with_subscriber(&mut |subscriber| {
        subscriber.subscribe(1, channels)?;
        wait_for(channels.len(), subscriber);
        let subscriber = RefCell::new(subscriber);
        let received = || receive(&mut **subscriber.borrow_mut());
        let (server, act) = once.take().unwrap();
        act(server, &received);
        Err(NodeFailure::TimedOut)
    });
    assert_eq!(ended, Err(NodeFailure::TimedOut));
}

fn wait_for(confirmations: usize, subscriber: &mut dyn Subscriber) {
    let end = clock::now() + Duration::from_secs(5);
    let mut left = confirmations;
    while left > 0 && clock::now() < end {
        let event = subscriber.next_message(Duration::from_secs(5)).unwrap();
        left -= usize::from(matches!(event, Some(Event::Subscribed(..))));
    }
    assert_eq!(left, 0);
}

/// Returns the messages since the last call: those before the reply to a PING.
fn receive(subscriber: &mut dyn Subscriber) -> Vec<Event> {
    subscriber.ping().unwrap();
    let mut received = Vec::new();
    loop {
        match subscriber.next_message(Duration::from_secs(5)).unwrap() {
            Some(Event::Other) => return received,
            event => received.extend(event),
        }
    }
}

/// Returns the item that a step selects: `number` is counted from the last, modulo their count.
pub(crate) fn selected<T>(items: &[T], number: usize) -> Option<&T> {
    let position = number.checked_rem(items.len())?;
    items.iter().rev().nth(position)
}

/// Returns a time of that many units in milliseconds.
pub(crate) fn millis(units: u32) -> u64 {
    u64::try_from((UNIT * units).as_millis()).unwrap()
}

/// Returns whether two times are the same multiple of [`UNIT`], up to the duration of the test.
pub(crate) fn is_close(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) < UNIT / 4
}
