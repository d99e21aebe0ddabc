//! The scripts on a real server beside the plain model: any order of requests by several owners ends alike.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use redis::Connection;

use crate::config::builder::Config;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::{NodeStore, StoredLock, Turn};
use crate::time::clock;
use crate::transport::node::traits::Session;

#[path = "../../../examples/common/servers.rs"]
mod servers;

/// Of this all times are multiples, so that what a test takes by itself makes no difference.
pub(crate) const UNIT: Duration = Duration::from_secs(100);

/// What happens next. Numbers choose among the leases that there have been so far, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    Take {
        kind: LeaseKind,
        units: u32,
        /// The attempt leaves traces, those of a writer under the same token as that lease's.
        waits: Option<usize>,
    },
    PutBack(usize, u32),
    Extend(usize, u32),
    Downgrade(usize),
    /// A downgrade that does not come to this node.
    DowngradeElsewhere(usize),
    Release {
        lease: usize,
        gives_turn: bool,
    },
    LeaveGate(usize),
    Raise(usize),
    /// So many readers come in one batch.
    Come(usize),
    /// These leave in one batch.
    Leave(HashSet<usize>),
    /// A lease has come to its end.
    Expires(usize),
    /// A place at the gate has.
    PlaceExpires(usize),
    TurnEnds,
    ScriptsAreFlushed,
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly one of the last: they are those that still matter.
    let lease = || prop_oneof![3 => 0..1_usize, 3 => 0..3_usize, 1 => 0..8_usize];
    let units = || 1..6_u32;
    let kind = prop_oneof![Just(LeaseKind::Read), Just(LeaseKind::Write)];
    let waits = proptest::option::of(lease());
    prop_oneof![
        8 => (kind, units(), waits).prop_map(|(kind, units, waits)| Step::Take { kind, units, waits }),
        2 => (lease(), units()).prop_map(|(lease, units)| Step::PutBack(lease, units)),
        3 => (lease(), units()).prop_map(|(lease, units)| Step::Extend(lease, units)),
        3 => lease().prop_map(Step::Downgrade),
        1 => lease().prop_map(Step::DowngradeElsewhere),
        5 => (lease(), any::<bool>()).prop_map(|(lease, gives_turn)| Step::Release { lease, gives_turn }),
        1 => lease().prop_map(Step::LeaveGate),
        1 => lease().prop_map(Step::Raise),
        2 => (2..5_usize).prop_map(Step::Come),
        2 => proptest::collection::hash_set(lease(), 2..5).prop_map(Step::Leave),
        2 => lease().prop_map(Step::Expires),
        1 => lease().prop_map(Step::PlaceExpires),
        1 => Just(Step::TurnEnds),
        1 => Just(Step::ScriptsAreFlushed),
    ]
}

/// A lease, with the place at the gate that its owner would have.
struct Owner {
    lease: Arc<Lease>,
    place: Arc<Lease>,
}

/// A server and the model, for one lock.
struct Pair<'a> {
    key: Key,
    session: &'a mut dyn Session,
    raw: &'a mut Connection,
    model: NodeStore,
    owners: Vec<Owner>,
}

impl Pair<'_> {
    fn lease(&self, kind: LeaseKind) -> Arc<Lease> {
        let token = Token::fresh(Some("model")).unwrap();
        Arc::new(Lease::new(self.key.clone(), token, kind))
    }

    fn owner(&self, number: usize) -> Option<&Owner> {
        let place = number.checked_rem(self.owners.len())?;
        self.owners.iter().rev().nth(place)
    }

    /// Asks both, and both must answer alike.
    fn ask(&mut self, request: Request) {
        self.ask_all(&[request]);
    }

    /// The same for a batch.
    fn ask_all(&mut self, requests: &[Request]) {
        if requests.is_empty() {
            return;
        }
        let mut answers: Vec<Option<Reply>> = vec![None; requests.len()];
        let mut told = |index: usize, answer| answers[index] = Some(answer);
        self.session.send_batch(requests, &mut told).unwrap();
        for (request, answer) in requests.iter().zip(answers) {
            let expected = Some(self.model.serve(request, clock::now()));
            let what = (request.op, request.lease.kind());
            match (&answer, &expected) {
                (Some(Reply::Held(by, Some(left))), Some(Reply::Held(wanted, Some(until)))) => {
                    assert_eq!(by, wanted, "{what:?}");
                    assert!(close(*left, *until), "{what:?}: {left:?}, {until:?}");
                }
                // Nobody asks whether a place that is left had ended: the server may not have swept it yet.
                (Some(_), _) if request.lease.kind() == LeaseKind::GateEntry => {}
                _ => assert_eq!(answer, expected, "{what:?}"),
            }
        }
    }

    /// A new owner's request for a lease.
    fn take(&mut self, kind: LeaseKind, units: u32) -> Request {
        let (lease, place) = (self.lease(kind), self.lease(LeaseKind::GateEntry));
        let request = Request::new(Op::Acquire, &lease, millis(units));
        self.owners.push(Owner { lease, place });
        request
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Take { kind, units, waits } => {
                let waits = waits.and_then(|number| self.owner(number));
                let place = waits.map(|owner| Arc::clone(&owner.place));
                let mut request = self.take(kind, units);
                if place.is_some() {
                    request.refresh_interval = UNIT;
                    request.gate_entry = place.filter(|_| kind == LeaseKind::Write);
                }
                self.ask(request);
            }
            Step::Come(count) => {
                let come: Vec<_> = (0..count).map(|_| self.take(LeaseKind::Read, 3)).collect();
                self.ask_all(&come);
            }
            Step::PutBack(number, units) => self.ask_of(number, Op::Restore, units),
            Step::Extend(number, units) => self.ask_of(number, Op::Extend, units),
            Step::Downgrade(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    lease.downgrade();
                    let mut request = Request::new(Op::Downgrade, lease, millis(1));
                    request.refresh_interval = UNIT;
                    self.ask(request);
                }
            }
            Step::DowngradeElsewhere(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    lease.downgrade();
                }
            }
            Step::Release { lease, gives_turn } => {
                if let Some(Owner { lease, .. }) = self.owner(lease) {
                    let mut request = Request::new(Op::Release, lease, 0);
                    request.refresh_interval = UNIT * u32::from(gives_turn);
                    self.ask(request);
                }
            }
            Step::Leave(ref who) => {
                let count = self.owners.len();
                let who: HashSet<_> = who.iter().filter_map(|n| n.checked_rem(count)).collect();
                let leave =
                    |number: usize| Request::new(Op::Release, &self.owners[number].lease, 0);
                let leave: Vec<_> = who.into_iter().map(leave).collect();
                self.ask_all(&leave);
            }
            Step::LeaveGate(number) => {
                if let Some(Owner { place, .. }) = self.owner(number) {
                    self.ask(Request::new(Op::Release, place, 0));
                }
            }
            Step::Raise(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    let mut request = Request::new(Op::RaiseFence, lease, 0);
                    request.min_fence = Some(7);
                    self.ask(request);
                }
            }
            Step::Expires(number) => self.expire(number, |owner| &owner.lease),
            Step::PlaceExpires(number) => self.expire(number, |owner| &owner.place),
            Step::TurnEnds => {
                self.model.slot(&self.key, clock::now()).turn = None;
                self.raw(&["DEL", &self.named(":turn")]);
            }
            Step::ScriptsAreFlushed => self.raw(&["SCRIPT", "FLUSH"]),
        }
    }

    fn ask_of(&mut self, number: usize, op: Op, units: u32) {
        if let Some(Owner { lease, .. }) = self.owner(number) {
            self.ask(Request::new(op, lease, millis(units)));
        }
    }

    /// Brings about what time would: the token ends, in the way in which its kind does.
    fn expire(&mut self, number: usize, which: impl Fn(&Owner) -> &Arc<Lease>) {
        let Some(owner) = self.owner(number) else {
            return;
        };
        let token = which(owner).token().text().to_owned();
        let slot = self.model.slot(&self.key, clock::now());
        slot.owner.take_if(|(owner, _)| *owner == token);
        slot.readers.remove(&token);
        slot.gate.remove(&token);
        for set in [":readers", ":gate"] {
            self.raw(&["ZADD", &self.named(set), "XX", "1", &token]);
        }
        let writer = self.named(":writer");
        let found: Option<String> = redis::cmd("GET").arg(&writer).query(self.raw).unwrap();
        if found == Some(token) {
            self.raw(&["DEL", &writer]);
        }
    }

    fn named(&self, ending: &'static str) -> String {
        self.key.derived(ending).to_string()
    }

    fn raw(&mut self, words: &[&str]) {
        redis::cmd(words[0])
            .arg(&words[1..])
            .exec(self.raw)
            .unwrap();
    }

    /// What stands on the server is what stands in the model; and a writer is alone in both.
    fn compare(&mut self) {
        let now = clock::now();
        let found = self.found(now);
        let expected = self.model.slot(&self.key, now).clone();
        assert!(
            found.owner.is_none() || found.readers.is_empty(),
            "{found:?}"
        );
        let ends = |slot: &StoredLock| {
            let mut ends: Vec<(String, Duration)> = Vec::new();
            let mut add = |name: String, end: Instant| ends.push((name, end - now));
            slot.owner
                .iter()
                .for_each(|(token, end)| add(format!("writer {token}"), *end));
            slot.readers
                .iter()
                .for_each(|(token, end)| add(format!("reader {token}"), *end));
            slot.gate
                .iter()
                .for_each(|(token, end)| add(format!("gate {token}"), *end));
            slot.turn
                .iter()
                .for_each(|(turn, end)| add(format!("{turn:?}"), *end));
            ends.sort();
            ends
        };
        let (found, expected) = (ends(&found), ends(&expected));
        let alike = found.len() == expected.len()
            && found
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.0 == b.0 && close(a.1, b.1));
        assert!(alike, "on the server {found:?}\nin the model {expected:?}");
    }

    fn found(&mut self, now: Instant) -> StoredLock {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(self.raw).unwrap();
        let server = seconds * 1000 + micros / 1000;
        let [writer, readers, gate, turn] =
            [":writer", ":readers", ":gate", ":turn"].map(|ending| self.named(ending));
        let mut string = |key: &str| -> Option<(String, Instant)> {
            let value: Option<String> = redis::cmd("GET").arg(key).query(self.raw).unwrap();
            let left: i64 = redis::cmd("PTTL").arg(key).query(self.raw).unwrap();
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            value.map(|value| (value, now + left))
        };
        let (owner, turn) = (string(&writer), string(&turn));
        let mut set = |key: &str| -> HashMap<String, Instant> {
            let all: Vec<(String, u64)> = redis::cmd("ZRANGE")
                .arg(&[key, "0", "-1", "WITHSCORES"])
                .query(self.raw)
                .unwrap();
            let left: i64 = redis::cmd("PTTL").arg(key).query(self.raw).unwrap();
            let last = all.last().map_or(0, |(_, end)| end.saturating_sub(server));
            assert!(
                all.is_empty() || left >= last as i64,
                "{key} ends before its last entry"
            );
            let alive = all.into_iter().filter(|(_, end)| *end >= server);
            let until = |end| now + Duration::from_millis(end - server);
            alive.map(|(token, end)| (token, until(end))).collect()
        };
        StoredLock {
            readers: set(&readers),
            gate: set(&gate),
            owner,
            fence: None,
            permits: BTreeMap::new(),
            count: 0,
            turn: turn.map(|(turn, end)| match turn.as_str() {
                "asked" => (Turn::Asked, end),
                "given" => (Turn::Given, end),
                other => panic!("{other}"),
            }),
        }
    }
}

/// What the server says to one request.
pub(crate) fn told(session: &mut dyn Session, request: &Request) -> Reply {
    let mut answer = None;
    let requests = std::slice::from_ref(request);
    session
        .send_batch(requests, &mut |_, told| answer = Some(told))
        .unwrap();
    answer.unwrap()
}

pub(crate) fn millis(units: u32) -> u64 {
    u64::try_from((UNIT * units).as_millis()).unwrap()
}

pub(crate) fn close(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) < UNIT / 4
}

fn take(kind: LeaseKind, waits: Option<usize>) -> Step {
    Step::Take {
        kind,
        units: 3,
        waits,
    }
}

fn release(lease: usize) -> Step {
    Step::Release {
        lease,
        gives_turn: true,
    }
}

/// A server, a session with it, and a connection behind the session's back.
pub(crate) fn connected() -> (servers::Server, Box<dyn Session>, Connection) {
    let server = servers::Server::start().unwrap();
    let settings = Config::new([server.addr()])
        .node_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(5))
        .validate()
        .unwrap();
    let (_, connector) =
        crate::transport::node::factory::make_connector(&settings.endpoints[0], &settings).unwrap();
    let (session, _) = connector.connect(None).unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let raw = client.get_connection().unwrap();
    (server, session, raw)
}

#[test]
fn scripts_and_model_agree() {
    let (_server, session, raw) = connected();
    let ends = RefCell::new((session, raw));
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(256)
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = proptest::collection::vec(step(), 1..50);
    let play = |steps: &[Step]| {
        let (session, raw) = &mut *ends.borrow_mut();
        redis::cmd("FLUSHALL").exec(raw).unwrap(); // what a case that failed has left
        let mut pair = Pair {
            key: Key::parse("redguard:", "x", LockKind::ReadWrite).unwrap(),
            session: &mut **session,
            raw,
            model: NodeStore::default(),
            owners: Vec::new(),
        };
        for step in steps {
            pair.step(step);
            pair.compare();
        }
        // When all have left, nothing is left.
        for number in 0..pair.owners.len() {
            pair.step(&Step::Release {
                lease: number,
                gives_turn: false,
            });
            pair.step(&Step::LeaveGate(number));
        }
        pair.step(&Step::TurnEnds);
        let fence = pair.named(":fence");
        pair.raw(&["DEL", &fence]); // which is kept for whoever comes in the next thirty days
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(pair.raw).unwrap();
        assert!(keys.is_empty(), "{keys:?}");
    };
    // What chance brings about too seldom: a downgrade that was missed, and a whole turn.
    for then in [
        Step::Extend(0, 2),
        release(0),
        Step::Leave(HashSet::from([0, 1])),
    ] {
        play(&[
            take(LeaseKind::Write, None),
            Step::DowngradeElsewhere(0),
            then,
        ]);
    }
    for refused in [LeaseKind::Read, LeaseKind::Write] {
        play(&[
            take(LeaseKind::Write, None),
            take(refused, Some(0)),
            release(1),
            take(LeaseKind::Write, Some(0)),
            take(LeaseKind::Read, None),
            release(0),
            Step::TurnEnds,
            take(LeaseKind::Read, None),
            take(LeaseKind::Write, None),
        ]);
    }
    let outcome = runner.run(&steps, |steps| {
        play(&steps);
        Ok(())
    });
    outcome.unwrap();
}
