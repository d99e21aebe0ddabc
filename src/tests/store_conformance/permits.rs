//! A semaphore's scripts on a real server beside the plain model: any order of requests by several owners ends alike.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use redis::Connection;

use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::single_key::{close, connected, millis, told};
use crate::time::clock;
use crate::transport::node::traits::Session;

/// What happens next. Numbers choose among the leases that there have been so far, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    /// By somebody who says that there are so many.
    Take {
        slot: u16,
        of: u16,
        units: u32,
    },
    Asks(Op, usize, u32),
    /// A permit has come to its end.
    Expires(u16),
    Forgets,
    ScriptsAreFlushed,
}

fn step() -> impl Strategy<Value = Step> {
    let lease = prop_oneof![3 => 0..1_usize, 3 => 0..3_usize, 1 => 0..8_usize];
    let of = prop_oneof![8 => Just(3_u16), 2 => Just(40_u16), 1 => Just(2_u16)];
    let op = vec![Op::Restore, Op::Extend, Op::Release, Op::Release];
    let op = proptest::sample::select(op);
    prop_oneof![
        8 => (any::<u16>(), of, 1..6_u32).prop_map(|(slot, of, units)| Step::Take { slot: slot % of, of, units }),
        8 => (op, lease, 1..6_u32).prop_map(|(op, lease, units)| Step::Asks(op, lease, units)),
        2 => (0..3_u16).prop_map(Step::Expires),
        1 => Just(Step::Forgets),
        1 => Just(Step::ScriptsAreFlushed),
    ]
}

struct Pair<'a> {
    key: Key,
    session: &'a mut dyn Session,
    raw: &'a mut Connection,
    model: NodeStore,
    leases: Vec<Arc<Lease>>,
}

impl Pair<'_> {
    fn ask(&mut self, request: &Request) {
        let answer = told(self.session, request);
        let expected = self.model.serve(request, clock::now());
        let what = (request.op, request.lease.kind());
        match (answer, expected) {
            (Reply::PermitTaken(free, next), Reply::PermitTaken(wanted, soonest)) => {
                assert!(close(next, soonest), "{what:?}: {next:?}, {soonest:?}");
                assert_eq!(free, wanted, "{what:?}");
            }
            (answer, expected) => assert_eq!(answer, expected, "{what:?}"),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Take { slot, of, units } => {
                let token = Token::fresh(Some("a label")).unwrap();
                let kind = LeaseKind::Permit {
                    index: slot,
                    total: of,
                };
                let lease = Arc::new(Lease::new(self.key.clone(), token, kind));
                self.ask(&Request::new(Op::Acquire, &lease, millis(units)));
                self.leases.push(lease);
            }
            Step::Asks(op, number, units) => {
                let Some(place) = number.checked_rem(self.leases.len()) else {
                    return;
                };
                let lease = &self.leases[self.leases.len() - 1 - place];
                let request = Request::new(op, lease, millis(units));
                self.ask(&request);
            }
            Step::Expires(permit) => {
                let slot = self.model.slot(&self.key, clock::now());
                if let Some((token, _)) = slot.permits.remove(&permit) {
                    let ended = format!("1 {token}");
                    self.run(&["HSET", &self.wire(), &permit.to_string(), &ended]);
                }
            }
            Step::Forgets => {
                self.model.clear();
                self.run(&["FLUSHALL"]);
            }
            Step::ScriptsAreFlushed => self.run(&["SCRIPT", "FLUSH"]),
        }
    }

    fn wire(&self) -> String {
        self.key.token_key().to_string()
    }

    fn run(&mut self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(self.raw).unwrap();
    }

    /// What stands on the server is what stands in the model.
    fn compare(&mut self) {
        let (now, wire) = (clock::now(), self.wire());
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(self.raw).unwrap();
        let server = seconds * 1000 + micros / 1000;
        let all: HashMap<String, String> =
            redis::cmd("HGETALL").arg(&wire).query(self.raw).unwrap();
        let left: i64 = redis::cmd("PTTL").arg(&wire).query(self.raw).unwrap();
        let slot = self.model.slot(&self.key, now).clone();
        let (mut found, mut last) = (0, 0);
        for (permit, held) in all.iter().filter(|(field, _)| *field != "permits") {
            let (end, token) = held.split_once(' ').unwrap();
            let end: u64 = end.parse().unwrap();
            if end < server {
                continue;
            }
            let (owner, until) = &slot.permits[&permit.parse::<u16>().unwrap()];
            assert_eq!(token, owner);
            assert!(close(Duration::from_millis(end - server), *until - now));
            (found, last) = (found + 1, last.max(end - server));
        }
        assert_eq!(found, slot.permits.len());
        if found > 0 {
            assert_eq!(all["permits"], slot.count.to_string());
            assert!(left >= last as i64, "the key ends before its last permit");
        }
    }
}

#[test]
fn a_semaphores_scripts_and_model_agree() {
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
            key: Key::parse("p:", "x", LockKind::Semaphore).unwrap(),
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
