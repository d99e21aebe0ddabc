//! Compares locks of several keys on a real server with the node model, over random requests of
//! owners with overlapping keys. Replies, values and fence counters must agree, and no request
//! stores a part of its keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::setup::{ComparedServer, UNIT, is_close, millis, selected};
use crate::time::clock;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A step of a case. A number selects an earlier lease, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    Acquire {
        names: Vec<&'static str>,
        units: u32,
        fenced: bool,
    },
    Send(Op, usize, u32),
    /// Hands a lock of one key off from its owner to a new lease.
    Swap(usize, u32, bool),
    /// A release of a lease keeps its keys from now on, for a number of units.
    Keep(usize, u32),
    /// The node loses a key.
    LoseData(&'static str),
    /// A foreign value is written to a key.
    ForeignValue(&'static str),
    /// A fence counter is raised far ahead.
    AdvanceFence(&'static str),
    FlushScripts,
}

fn step() -> impl Strategy<Value = Step> {
    let lease = || prop_oneof![3 => 0..1_usize, 3 => 0..3_usize, 1 => 0..8_usize];
    let name = || proptest::sample::select(NAMES.to_vec());
    let names = proptest::sample::subsequence(NAMES.to_vec(), 1..=4);
    let op = proptest::sample::select(vec![
        Op::Restore,
        Op::Extend,
        Op::RaiseFence,
        Op::Release,
        Op::Release,
    ]);
    prop_oneof![
        6 => (names, 1..6_u32, any::<bool>())
            .prop_map(|(names, units, fenced)| Step::Acquire { names, units, fenced }),
        10 => (op, lease(), 1..6_u32).prop_map(|(op, lease, units)| Step::Send(op, lease, units)),
        4 => (lease(), 1..6_u32, any::<bool>())
            .prop_map(|(lease, units, fenced)| Step::Swap(lease, units, fenced)),
        2 => (lease(), 1..6_u32).prop_map(|(lease, units)| Step::Keep(lease, units)),
        2 => name().prop_map(Step::LoseData),
        1 => name().prop_map(Step::ForeignValue),
        1 => name().prop_map(Step::AdvanceFence),
        1 => Just(Step::FlushScripts),
    ]
}

struct Pair<'a> {
    server: &'a mut ComparedServer,
    model: NodeStore,
    leases: Vec<Arc<Lease>>,
}

fn key(name: &str) -> Key {
    Key::parse("p:", name, LockKind::Exclusive).unwrap()
}

impl Pair<'_> {
    fn send(&mut self, request: &Request) {
        let reply = self.server.serve(request);
        let modelled = self.model.serve(request, clock::now());
        let what = (request.op, request.lease.keys());
        match (reply, modelled) {
            (Reply::Held(by, left, label), Reply::Held(expected_by, until, expected_label)) => {
                assert_eq!(label, expected_label, "{what:?}");
                let (left, until) = (left.unwrap(), until.unwrap());
                assert!(is_close(left, until), "{what:?}: {left:?}, {until:?}");
                // Among keys with the same expiry, the server may report any.
                let names_a_key = |by| matches!(by, Blocker::OwnerOfKey(_));
                assert_eq!(names_a_key(by), names_a_key(expected_by), "{what:?}");
            }
            // The clock of the model differs from that of the server.
            (Reply::Fenced(number), Reply::Fenced(_))
            | (Reply::SwappedAbsent(Some(number)), Reply::SwappedAbsent(Some(_))) => {
                self.adopt(request, number)
            }
            (reply, modelled) => assert_eq!(reply, modelled, "{what:?}"),
        }
    }

    /// Checks that each fence counter of the lock is equal to the returned fence, and copies it to
    /// the model.
    fn adopt(&mut self, request: &Request, number: u64) {
        for key in request.lease.keys().as_slice() {
            let fence = self.fence(key);
            assert_eq!(fence, Some(number), "{key:?}");
            let stored = self.model.stored_lock(key, clock::now());
            stored.fence = fence;
        }
    }

    fn fence(&mut self, key: &Key) -> Option<u64> {
        let fence = key.derived(":fence").to_string();
        redis::cmd("GET")
            .arg(fence)
            .query(&mut self.server.raw)
            .unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Acquire {
                ref names,
                units,
                fenced,
            } => {
                let keys = KeySet::parse("p:", names, LockKind::Exclusive).unwrap();
                let before: Vec<_> = keys.as_slice().iter().map(|key| self.fence(key)).collect();
                let token = Token::fresh(None).unwrap();
                let lease = Arc::new(Lease::new(keys.clone(), token, LeaseKind::Exclusive));
                let mut request = Request::new(Op::Acquire, &lease, millis(units));
                request.min_fence = fenced.then_some(0);
                self.send(&request);
                for (key, before) in keys.as_slice().iter().zip(before) {
                    assert!(self.fence(key) >= before);
                }
                self.leases.push(lease);
            }
            Step::Send(op, number, units) => {
                let Some(lease) = selected(&self.leases, number) else {
                    return;
                };
                // A release has no TTL.
                let ttl = if op == Op::Release { 0 } else { millis(units) };
                let mut request = Request::new(op, lease, ttl);
                if op == Op::RaiseFence {
                    request.min_fence = Some(u64::MAX >> 12);
                }
                self.send(&request);
            }
            Step::Swap(number, units, fenced) => self.swap(number, units, fenced),
            Step::Keep(number, units) => {
                if let Some(position) = number.checked_rem(self.leases.len()) {
                    let lease = &self.leases[self.leases.len() - 1 - position];
                    lease.keep_until(clock::now() + units * UNIT);
                }
            }
            Step::LoseData(name) => {
                self.model.stored_lock(&key(name), clock::now()).owner = None;
                self.server.run(&["DEL", key(name).as_str()]);
            }
            Step::ForeignValue(name) => {
                let until = clock::now() + UNIT;
                self.model.stored_lock(&key(name), clock::now()).owner =
                    Some(("s".to_owned(), until));
                self.server
                    .run(&["SET", key(name).as_str(), "s", "PX", &millis(1).to_string()]);
            }
            Step::AdvanceFence(name) => {
                let ahead = 1 << 51;
                let stored = self.model.stored_lock(&key(name), clock::now());
                stored.fence = stored.fence.max(Some(ahead));
                let ahead = stored.fence.unwrap_or(ahead).to_string();
                self.server
                    .run(&["SET", &key(name).derived(":fence").to_string(), &ahead]);
            }
            Step::FlushScripts => self.server.run(&["SCRIPT", "FLUSH"]),
        }
    }

    fn swap(&mut self, number: usize, units: u32, fenced: bool) {
        let one = |lease: &&Arc<Lease>| lease.keys().single().is_some();
        let Some(former) = self.leases.iter().rev().filter(one).nth(number) else {
            return;
        };
        let former = Arc::clone(former);
        let token = Token::fresh(None).unwrap();
        let lease = Lease::new(former.keys().clone(), token, LeaseKind::Exclusive);
        let lease = Arc::new(lease);
        let mut request = Request::new(Op::Swap, &lease, millis(units));
        request.min_fence = fenced.then_some(0);
        request.former_lease = Some(former);
        self.send(&request);
        self.leases.push(lease);
    }

    /// Checks that the server and the model store the same.
    fn compare(&mut self) {
        let now = clock::now();
        for key in NAMES.map(key) {
            let value: Option<String> = redis::cmd("GET")
                .arg(key.as_str())
                .query(&mut self.server.raw)
                .unwrap();
            let left: i64 = redis::cmd("PTTL")
                .arg(key.as_str())
                .query(&mut self.server.raw)
                .unwrap();
            let stored = self.model.stored_lock(&key, now).clone();
            let left = |end: Instant| {
                let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
                is_close(left, end - now)
            };
            match (value, stored.owner) {
                (Some(value), Some((owner, end))) => {
                    assert!(value == owner && left(end), "{key:?}");
                }
                (found, modelled) => {
                    assert!(found.is_none() && modelled.is_none(), "{key:?}")
                }
            }
            let fence = self.fence(&key);
            assert_eq!(fence, stored.fence, "{key:?}");
        }
    }
}

#[test]
fn multi_key_scripts_agree_with_the_model() {
    let steps = proptest::collection::vec(step(), 1..40);
    ComparedServer::start().play_random(192, steps, |server, steps| {
        let mut pair = Pair {
            server,
            model: NodeStore::default(),
            leases: Vec::new(),
        };
        for step in steps {
            pair.step(step);
            pair.compare();
        }
    });
}
