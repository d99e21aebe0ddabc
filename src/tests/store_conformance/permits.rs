//! Compares the semaphore scripts on a real server with the node model, over random requests of
//! several owners.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::setup::{ComparedServer, is_close, millis, selected};
use crate::time::clock;

/// A step of a case. A number selects an earlier lease, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    /// A new lease acquires permit `index` of a semaphore that it believes to have `total` permits.
    Acquire {
        index: u16,
        total: u16,
        units: u32,
    },
    Send(Op, usize, u32),
    /// The lease of a permit expires.
    LeaseExpires(u16),
    LoseData,
    FlushScripts,
}

fn step() -> impl Strategy<Value = Step> {
    let lease = prop_oneof![3 => 0..1_usize, 3 => 0..3_usize, 1 => 0..8_usize];
    let total = prop_oneof![8 => Just(3_u16), 2 => Just(40_u16), 1 => Just(2_u16)];
    let op = vec![Op::Restore, Op::Extend, Op::Release, Op::Release];
    let op = proptest::sample::select(op);
    prop_oneof![
        8 => (any::<u16>(), total, 1..6_u32).prop_map(|(index, total, units)| Step::Acquire { index: index % total, total, units }),
        8 => (op, lease, 1..6_u32).prop_map(|(op, lease, units)| Step::Send(op, lease, units)),
        2 => (0..3_u16).prop_map(Step::LeaseExpires),
        1 => Just(Step::LoseData),
        1 => Just(Step::FlushScripts),
    ]
}

struct Pair<'a> {
    key: Key,
    server: &'a mut ComparedServer,
    model: NodeStore,
    leases: Vec<Arc<Lease>>,
}

impl Pair<'_> {
    fn send(&mut self, request: &Request) {
        let reply = self.server.serve(request);
        let modelled = self.model.serve(request, clock::now());
        let what = (request.op, request.lease.kind());
        match (reply, modelled) {
            (Reply::PermitTaken(free, next), Reply::PermitTaken(expected_by, soonest)) => {
                assert!(is_close(next, soonest), "{what:?}: {next:?}, {soonest:?}");
                assert_eq!(free, expected_by, "{what:?}");
            }
            (reply, modelled) => assert_eq!(reply, modelled, "{what:?}"),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Acquire {
                index,
                total,
                units,
            } => {
                let token = Token::fresh(Some(&Arc::new("a label".to_owned()))).unwrap();
                let kind = LeaseKind::Permit { index, total };
                let lease = Arc::new(Lease::new(self.key.clone(), token, kind));
                self.send(&Request::new(Op::Acquire, &lease, millis(units)));
                self.leases.push(lease);
            }
            Step::Send(op, number, units) => {
                let Some(lease) = selected(&self.leases, number) else {
                    return;
                };
                let request = Request::new(op, lease, millis(units));
                self.send(&request);
            }
            Step::LeaseExpires(permit) => {
                let stored = self.model.stored_lock(&self.key, clock::now());
                if let Some((token, _)) = stored.permits.remove(&permit) {
                    let ended = format!("1 {token}");
                    self.server
                        .run(&["HSET", &self.wire(), &permit.to_string(), &ended]);
                }
            }
            Step::LoseData => {
                self.model.clear();
                self.server.run(&["FLUSHALL"]);
            }
            Step::FlushScripts => self.server.run(&["SCRIPT", "FLUSH"]),
        }
    }

    fn wire(&self) -> String {
        self.key.token_key().to_string()
    }

    /// Checks that the server and the model store the same.
    fn compare(&mut self) {
        let (now, wire) = (clock::now(), self.wire());
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut self.server.raw).unwrap();
        let server = seconds * 1000 + micros / 1000;
        let all: HashMap<String, String> = redis::cmd("HGETALL")
            .arg(&wire)
            .query(&mut self.server.raw)
            .unwrap();
        let left: i64 = redis::cmd("PTTL")
            .arg(&wire)
            .query(&mut self.server.raw)
            .unwrap();
        let stored = self.model.stored_lock(&self.key, now).clone();
        let (mut live, mut last) = (0, 0);
        for (permit, held) in all.iter().filter(|(field, _)| *field != "permits") {
            let (end, token) = held.split_once(' ').unwrap();
            let end: u64 = end.parse().unwrap();
            if end < server {
                continue;
            }
            let (owner, until) = &stored.permits[&permit.parse::<u16>().unwrap()];
            assert_eq!(token, owner);
            assert!(is_close(Duration::from_millis(end - server), *until - now));
            (live, last) = (live + 1, last.max(end - server));
        }
        assert_eq!(live, stored.permits.len());
        if live > 0 {
            assert_eq!(all["permits"], stored.count.to_string());
            assert!(left >= last as i64, "the key ends before its last permit");
        }
    }
}

#[test]
fn semaphore_scripts_agree_with_the_model() {
    let steps = proptest::collection::vec(step(), 1..40);
    ComparedServer::start().play_random(192, steps, |server, steps| {
        let mut pair = Pair {
            key: Key::parse("p:", "x", LockKind::Semaphore).unwrap(),
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
