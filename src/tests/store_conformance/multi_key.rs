//! Locks of several keys on a real server beside the plain model: any order of requests by owners whose keys overlap ends
//! alike, and no owner ever has a part of its keys by its own doing.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use redis::Connection;

use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::single_key::{UNIT, close, connected, millis, told};
use crate::time::clock;
use crate::transport::node::traits::Session;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What happens next. Numbers choose among the leases that there have been so far, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    Take {
        names: Vec<&'static str>,
        units: u32,
        fenced: bool,
    },
    Asks(Op, usize, u32),
    /// A lock of one key goes from its owner to the next.
    Swap(usize, u32, bool),
    /// The node loses a key.
    Forgets(&'static str),
    /// Somebody else's value comes under a key, behind everybody's back.
    Stranger(&'static str),
    /// A fence has run ahead.
    Leaps(&'static str),
    ScriptsAreFlushed,
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
            .prop_map(|(names, units, fenced)| Step::Take { names, units, fenced }),
        10 => (op, lease(), 1..6_u32).prop_map(|(op, lease, units)| Step::Asks(op, lease, units)),
        4 => (lease(), 1..6_u32, any::<bool>())
            .prop_map(|(lease, units, fenced)| Step::Swap(lease, units, fenced)),
        2 => name().prop_map(Step::Forgets),
        1 => name().prop_map(Step::Stranger),
        1 => name().prop_map(Step::Leaps),
        1 => Just(Step::ScriptsAreFlushed),
    ]
}

struct Pair<'a> {
    session: &'a mut dyn Session,
    raw: &'a mut Connection,
    model: NodeStore,
    leases: Vec<Arc<Lease>>,
}

fn key(name: &str) -> Key {
    Key::parse("p:", name, LockKind::Exclusive).unwrap()
}

impl Pair<'_> {
    fn ask(&mut self, request: &Request) {
        let answer = told(self.session, request);
        let expected = self.model.serve(request, clock::now());
        let what = (request.op, request.lease.keys());
        match (answer, expected) {
            (Reply::Held(by, left), Reply::Held(wanted, until)) => {
                let (left, until) = (left.unwrap(), until.unwrap());
                assert!(close(left, until), "{what:?}: {left:?}, {until:?}");
                // Of two that end at the same time either may be named.
                let named = |by| matches!(by, Blocker::OwnerOfKey(_));
                assert_eq!(named(by), named(wanted), "{what:?}");
            }
            // The model's clock starts elsewhere than the server's.
            (Reply::Fenced(number), Reply::Fenced(_))
            | (Reply::SwappedAbsent(Some(number)), Reply::SwappedAbsent(Some(_))) => {
                self.adopt(request, number)
            }
            (answer, expected) => assert_eq!(answer, expected, "{what:?}"),
        }
    }

    /// All fences of a lock are at its number, which is above what each of them was.
    fn adopt(&mut self, request: &Request, number: u64) {
        for key in request.lease.keys().as_slice() {
            let fence = self.fence(key);
            assert_eq!(fence, Some(number), "{key:?}");
            let slot = self.model.slot(key, clock::now());
            slot.fence = fence;
        }
    }

    fn fence(&mut self, key: &Key) -> Option<u64> {
        let fence = key.derived(":fence").to_string();
        redis::cmd("GET").arg(fence).query(self.raw).unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Take {
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
                self.ask(&request);
                for (key, before) in keys.as_slice().iter().zip(before) {
                    assert!(self.fence(key) >= before);
                }
                self.leases.push(lease);
            }
            Step::Asks(op, number, units) => {
                let Some(place) = number.checked_rem(self.leases.len()) else {
                    return;
                };
                let lease = &self.leases[self.leases.len() - 1 - place];
                let mut request = Request::new(op, lease, millis(units));
                if op == Op::RaiseFence {
                    request.min_fence = Some(u64::MAX >> 12);
                }
                self.ask(&request);
            }
            Step::Swap(number, units, fenced) => {
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
                self.ask(&request);
                self.leases.push(lease);
            }
            Step::Forgets(name) => {
                self.model.slot(&key(name), clock::now()).owner = None;
                self.run(&["DEL", key(name).as_str()]);
            }
            Step::Stranger(name) => {
                let until = clock::now() + UNIT;
                self.model.slot(&key(name), clock::now()).owner = Some(("s".to_owned(), until));
                self.run(&["SET", key(name).as_str(), "s", "PX", &millis(1).to_string()]);
            }
            Step::Leaps(name) => {
                let ahead = 1 << 51;
                let slot = self.model.slot(&key(name), clock::now());
                slot.fence = slot.fence.max(Some(ahead));
                let ahead = slot.fence.unwrap_or(ahead).to_string();
                self.run(&["SET", &key(name).derived(":fence").to_string(), &ahead]);
            }
            Step::ScriptsAreFlushed => self.run(&["SCRIPT", "FLUSH"]),
        }
    }

    fn run(&mut self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(self.raw).unwrap();
    }

    /// What stands on the server is what stands in the model.
    fn compare(&mut self) {
        let now = clock::now();
        for key in NAMES.map(key) {
            let value: Option<String> =
                redis::cmd("GET").arg(key.as_str()).query(self.raw).unwrap();
            let left: i64 = redis::cmd("PTTL")
                .arg(key.as_str())
                .query(self.raw)
                .unwrap();
            let slot = self.model.slot(&key, now).clone();
            let left = |end: Instant| {
                let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
                close(left, end - now)
            };
            match (value, slot.owner) {
                (Some(value), Some((owner, end))) => {
                    assert!(value == owner && left(end), "{key:?}");
                }
                (found, expected) => assert!(found.is_none() && expected.is_none(), "{key:?}"),
            }
            let fence = self.fence(&key);
            assert_eq!(fence, slot.fence, "{key:?}");
        }
    }
}

#[test]
fn scripts_for_several_keys_and_model_agree() {
    let (_server, session, raw) = connected();
    let ends = RefCell::new((session, raw));
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(192)
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = proptest::collection::vec(step(), 1..40);
    let outcome = runner.run(&steps, |steps| {
        let (session, raw) = &mut *ends.borrow_mut();
        redis::cmd("FLUSHALL").exec(raw).unwrap();
        let mut pair = Pair {
            session: &mut **session,
            raw,
            model: NodeStore::default(),
            leases: Vec::new(),
        };
        for step in steps {
            pair.step(&step);
            pair.compare();
        }
        Ok(())
    });
    outcome.unwrap();
}
