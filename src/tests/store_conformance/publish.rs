//! Compares which releases a real server and the node model publish: of each kind of lock, for each
//! state of the token on the node. A real `redis-server` is started.

use std::sync::Arc;

use crate::protocol::key::{Channel, Key};
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::setup::{ComparedServer, with_messages};
use crate::time::clock;
use crate::transport::node::traits::Event;

const TTL: u64 = 1_000_000;

/// What a node has when a token is released.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Nothing,
    Ours,
    /// The token of another holder. A reader shares the lock with ours.
    Other,
    /// Of several keys the first is ours, and another holder has the second.
    OursAndOther,
}

/// A server and its model, which get the same requests.
struct Pair<'a> {
    server: &'a mut ComparedServer,
    model: NodeStore,
    received: &'a dyn Fn() -> Vec<Event>,
}

impl Pair<'_> {
    /// Sends a request to both, and compares the replies and the messages. Returns the number of
    /// messages.
    fn send(&mut self, request: &Request) -> usize {
        let case = format!("{:?}, {:?}", request.lease.kind(), request.publish);
        let reply = self.server.serve(request);
        let (modelled, messages) = self.model.run(request, clock::now(), &|_| 1);
        if request.op == Op::Release {
            assert_eq!(reply, modelled, "{case}");
        }
        let expected: Vec<Event> = messages.into_iter().map(|(_, event)| event).collect();
        let received = (self.received)();
        assert_eq!(received, expected, "{case}");
        received.len()
    }
}

const NAMES: [&str; 2] = ["{of}a", "{of}b"];

/// Returns a lease of these names under a token.
fn lease(names: &[&str], kind: LeaseKind, token: Token) -> Arc<Lease> {
    let family = match kind {
        LeaseKind::Read | LeaseKind::Write => LockKind::ReadWrite,
        LeaseKind::Permit { .. } => LockKind::Semaphore,
        LeaseKind::Exclusive | LeaseKind::GateEntry => LockKind::Exclusive,
    };
    let keys = KeySet::parse("p:", names, family).unwrap();
    Arc::new(Lease::new(keys, token, kind))
}

fn fresh() -> Token {
    Token::fresh(None).unwrap()
}

#[test]
fn releases_are_published_by_the_model_as_by_a_server() {
    let channels = lease(&NAMES, LeaseKind::Exclusive, fresh());
    let channels: Vec<Channel> = channels
        .keys()
        .as_slice()
        .iter()
        .map(Key::channel)
        .collect();
    with_messages(&channels, |mut server, received| {
        let permit = LeaseKind::Permit { index: 1, total: 3 };
        for (kind, count) in [
            (LeaseKind::Exclusive, 1),
            (LeaseKind::Exclusive, 2),
            (LeaseKind::Read, 1),
            (LeaseKind::Write, 1),
            (permit, 1),
        ] {
            for stored in [
                Stored::Nothing,
                Stored::Ours,
                Stored::Other,
                Stored::OursAndOther,
            ] {
                for publish in [Publish::Never, Publish::IfDeleted, Publish::Always] {
                    let case = format!("{kind:?} of {count}: {stored:?}, {publish:?}");
                    server.run(&["FLUSHALL"]);
                    let mut pair = Pair {
                        server: &mut server,
                        model: NodeStore::default(),
                        received,
                    };
                    let names = &NAMES[..count];
                    let messages = release(&mut pair, names, kind, (stored, publish));
                    check(messages, (kind, count, stored, publish), &case);
                }
            }
        }
    });
}

/// Brings both to the state, and releases a lease. Returns the number of messages.
fn release(
    pair: &mut Pair<'_>,
    names: &[&str],
    kind: LeaseKind,
    (stored, publish): (Stored, Publish),
) -> usize {
    let ours = lease(names, kind, fresh());
    let first = Token::existing(&ours.token().text());
    let first = lease(&names[..1], kind, first);
    let other = lease(&names[names.len() - 1..], kind, fresh());
    let acquired = match stored {
        Stored::Nothing => vec![],
        Stored::Ours => vec![&ours],
        Stored::Other => vec![&other],
        Stored::OursAndOther => vec![&first, &other],
    };
    for lease in acquired {
        pair.send(&Request::new(Op::Acquire, lease, TTL));
    }
    let mut request = Request::new(Op::Release, &ours, 0);
    request.publish = publish;
    pair.send(&request)
}

/// Checks the number of messages of a release.
fn check(messages: usize, what: (LeaseKind, usize, Stored, Publish), case: &str) {
    let (kind, count, stored, publish) = what;
    // Of several readers only the last one that leaves publishes.
    let is_shared =
        kind == LeaseKind::Read && matches!(stored, Stored::Other | Stored::OursAndOther);
    let expected = match (publish, stored) {
        (Publish::Never, _) => 0,
        _ if is_shared => 0,
        (Publish::Always, _) => count,
        (Publish::IfDeleted, Stored::Ours) => count,
        (Publish::IfDeleted, Stored::OursAndOther) => 1,
        (Publish::IfDeleted, Stored::Nothing | Stored::Other) => 0,
    };
    assert_eq!(messages, expected, "{case}");
}
