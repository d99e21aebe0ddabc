//! Compares the scripts for one key on a real server with the node model, over random requests of
//! several owners. A real `redis-server` is started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::fake_node::stored_lock::{ReaderTurn, StoredLock};
use crate::tests::store_conformance::setup::{ComparedServer, UNIT, is_close, millis, selected};
use crate::time::clock;

/// A step of a case. A number selects an earlier lease, counted from the last.
#[derive(Clone, Debug)]
enum Step {
    Acquire {
        kind: LeaseKind,
        units: u32,
        /// The acquire waits: a reader leaves a reader marker, a writer leaves the gate entry of
        /// the selected lease's owner.
        waits_as: Option<usize>,
    },
    Restore(usize, u32),
    Extend(usize, u32),
    Downgrade(usize),
    /// A downgrade that this node does not receive.
    MissDowngrade(usize),
    Release {
        lease: usize,
        begins_turn: bool,
    },
    ReleaseGateEntry(usize),
    RaiseFence(usize),
    /// The number of readers that acquire in one batch.
    ReadersAcquire(usize),
    /// The leases that are released in one batch.
    ReadersRelease(HashSet<usize>),
    /// A lease expires.
    LeaseExpires(usize),
    /// A gate entry expires.
    GateEntryExpires(usize),
    ReaderTurnEnds,
    FlushScripts,
}

fn step() -> impl Strategy<Value = Step> {
    // Recent leases are selected most often, because they are still stored.
    let lease = || prop_oneof![3 => 0..1_usize, 3 => 0..3_usize, 1 => 0..8_usize];
    let units = || 1..6_u32;
    let kind = prop_oneof![Just(LeaseKind::Read), Just(LeaseKind::Write)];
    let waits_as = proptest::option::of(lease());
    prop_oneof![
        8 => (kind, units(), waits_as).prop_map(|(kind, units, waits_as)| Step::Acquire { kind, units, waits_as }),
        2 => (lease(), units()).prop_map(|(lease, units)| Step::Restore(lease, units)),
        3 => (lease(), units()).prop_map(|(lease, units)| Step::Extend(lease, units)),
        3 => lease().prop_map(Step::Downgrade),
        1 => lease().prop_map(Step::MissDowngrade),
        5 => (lease(), any::<bool>()).prop_map(|(lease, begins_turn)| Step::Release { lease, begins_turn }),
        1 => lease().prop_map(Step::ReleaseGateEntry),
        1 => lease().prop_map(Step::RaiseFence),
        2 => (2..5_usize).prop_map(Step::ReadersAcquire),
        2 => proptest::collection::hash_set(lease(), 2..5).prop_map(Step::ReadersRelease),
        2 => lease().prop_map(Step::LeaseExpires),
        1 => lease().prop_map(Step::GateEntryExpires),
        1 => Just(Step::ReaderTurnEnds),
        1 => Just(Step::FlushScripts),
    ]
}

/// A lease, with the gate entry of its owner.
struct Owner {
    lease: Arc<Lease>,
    gate_entry: Arc<Lease>,
}

/// A server and the model of one lock.
struct Pair<'a> {
    key: Key,
    server: &'a mut ComparedServer,
    model: NodeStore,
    owners: Vec<Owner>,
}

impl Pair<'_> {
    fn lease(&self, kind: LeaseKind) -> Arc<Lease> {
        let token = Token::fresh(Some(&Arc::new("model".to_owned()))).unwrap();
        Arc::new(Lease::new(self.key.clone(), token, kind))
    }

    fn owner(&self, number: usize) -> Option<&Owner> {
        selected(&self.owners, number)
    }

    /// Sends a request to both and compares the replies.
    fn send(&mut self, request: Request) {
        self.send_all(&[Arc::new(request)]);
    }

    /// Sends a batch to both and compares the replies.
    fn send_all(&mut self, requests: &[Arc<Request>]) {
        if requests.is_empty() {
            return;
        }
        let mut replies: Vec<Option<Reply>> = vec![None; requests.len()];
        let mut on_reply = |index: usize, reply| replies[index] = Some(reply);
        let session = &mut self.server.session;
        session.send_batch(requests, &mut on_reply).unwrap();
        for (request, reply) in requests.iter().zip(replies) {
            let modelled = Some(self.model.serve(request, clock::now()));
            let what = (request.op, request.lease.kind());
            match (&reply, &modelled) {
                (
                    Some(Reply::Held(by, Some(left), label)),
                    Some(Reply::Held(expected_by, Some(until), expected_label)),
                ) => {
                    assert_eq!((by, label), (expected_by, expected_label), "{what:?}");
                    assert!(is_close(*left, *until), "{what:?}: {left:?}, {until:?}");
                }
                // Replies to the release of a gate entry may differ, because the server removes
                // expired entries later.
                (Some(_), _) if request.lease.kind() == LeaseKind::GateEntry => {}
                // A request whose script the server lacks is sent again behind its batch. So
                // another release of the batch may delete the other token before this one, or after
                // it.
                (
                    Some(Reply::Absent | Reply::OtherToken),
                    Some(Reply::Absent | Reply::OtherToken),
                ) if request.op == Op::Release && requests.len() > 1 => {}
                _ => assert_eq!(reply, modelled, "{what:?}"),
            }
        }
    }

    /// Returns the acquire of a new owner.
    fn new_request(&mut self, kind: LeaseKind, units: u32) -> Request {
        let (lease, gate_entry) = (self.lease(kind), self.lease(LeaseKind::GateEntry));
        let request = Request::new(Op::Acquire, &lease, millis(units));
        self.owners.push(Owner { lease, gate_entry });
        request
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Acquire {
                kind,
                units,
                waits_as,
            } => self.acquire(kind, units, waits_as),
            Step::ReadersAcquire(count) => {
                let requests: Vec<_> = (0..count)
                    .map(|_| Arc::new(self.new_request(LeaseKind::Read, 3)))
                    .collect();
                self.send_all(&requests);
            }
            Step::Restore(number, units) => self.send_for(number, Op::Restore, units),
            Step::Extend(number, units) => self.send_for(number, Op::Extend, units),
            Step::Downgrade(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    lease.downgrade();
                    let mut request = Request::new(Op::Downgrade, lease, millis(1));
                    request.refresh_interval = UNIT;
                    self.send(request);
                }
            }
            Step::MissDowngrade(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    lease.downgrade();
                }
            }
            Step::Release { lease, begins_turn } => {
                if let Some(Owner { lease, .. }) = self.owner(lease) {
                    let mut request = Request::new(Op::Release, lease, 0);
                    request.refresh_interval = UNIT * u32::from(begins_turn);
                    self.send(request);
                }
            }
            Step::ReadersRelease(ref leases) => self.release_readers(leases),
            Step::ReleaseGateEntry(number) => {
                if let Some(Owner { gate_entry, .. }) = self.owner(number) {
                    self.send(Request::new(Op::Release, gate_entry, 0));
                }
            }
            Step::RaiseFence(number) => {
                if let Some(Owner { lease, .. }) = self.owner(number) {
                    let mut request = Request::new(Op::RaiseFence, lease, 0);
                    request.min_fence = Some(7);
                    self.send(request);
                }
            }
            Step::LeaseExpires(number) => self.expire(number, |owner| &owner.lease),
            Step::GateEntryExpires(number) => self.expire(number, |owner| &owner.gate_entry),
            Step::ReaderTurnEnds => {
                self.model.stored_lock(&self.key, clock::now()).turn = None;
                self.server.run(&["DEL", &self.derived_key(":turn")]);
            }
            Step::FlushScripts => self.server.run(&["SCRIPT", "FLUSH"]),
        }
    }

    fn acquire(&mut self, kind: LeaseKind, units: u32, waits_as: Option<usize>) {
        let waits_as = waits_as.and_then(|number| self.owner(number));
        let gate_entry = waits_as.map(|owner| Arc::clone(&owner.gate_entry));
        let mut request = self.new_request(kind, units);
        if gate_entry.is_some() {
            request.refresh_interval = UNIT;
            request.gate_entry = gate_entry.filter(|_| kind == LeaseKind::Write);
        }
        self.send(request);
    }

    fn release_readers(&mut self, leases: &HashSet<usize>) {
        let count = self.owners.len();
        let numbers: HashSet<_> = leases.iter().filter_map(|n| n.checked_rem(count)).collect();
        let release =
            |number: usize| Arc::new(Request::new(Op::Release, &self.owners[number].lease, 0));
        let requests: Vec<_> = numbers.into_iter().map(release).collect();
        self.send_all(&requests);
    }

    fn send_for(&mut self, number: usize, op: Op, units: u32) {
        if let Some(Owner { lease, .. }) = self.owner(number) {
            self.send(Request::new(op, lease, millis(units)));
        }
    }

    /// Expires a token on both, as the passage of time does for its kind.
    fn expire(&mut self, number: usize, which: impl Fn(&Owner) -> &Arc<Lease>) {
        let Some(owner) = self.owner(number) else {
            return;
        };
        let token = which(owner).token().text();
        let stored = self.model.stored_lock(&self.key, clock::now());
        stored.owner.take_if(|(owner, _)| *owner == token);
        stored.readers.remove(&token);
        stored.gate.remove(&token);
        for set in [":readers", ":gate"] {
            self.server
                .run(&["ZADD", &self.derived_key(set), "XX", "1", &token]);
        }
        let writer = self.derived_key(":writer");
        let stored: Option<String> = redis::cmd("GET")
            .arg(&writer)
            .query(&mut self.server.raw)
            .unwrap();
        if stored == Some(token) {
            self.server.run(&["DEL", &writer]);
        }
    }

    fn derived_key(&self, ending: &'static str) -> String {
        self.key.derived(ending).to_string()
    }

    /// Checks that the server and the model store the same, and that a writer excludes readers in
    /// both.
    fn compare(&mut self) {
        let now = clock::now();
        let stored = self.stored(now);
        let modelled = self.model.stored_lock(&self.key, now).clone();
        assert!(
            stored.owner.is_none() || stored.readers.is_empty(),
            "{stored:?}"
        );
        let ends = |stored: &StoredLock| {
            let mut ends: Vec<(String, Duration)> = Vec::new();
            let mut add = |name: String, end: Instant| ends.push((name, end - now));
            stored
                .owner
                .iter()
                .for_each(|(token, end)| add(format!("writer {token}"), *end));
            stored
                .readers
                .iter()
                .for_each(|(token, end)| add(format!("reader {token}"), *end));
            stored
                .gate
                .iter()
                .for_each(|(token, end)| add(format!("gate {token}"), *end));
            stored
                .turn
                .iter()
                .for_each(|(turn, end)| add(format!("{turn:?}"), *end));
            ends.sort();
            ends
        };
        let (stored, modelled) = (ends(&stored), ends(&modelled));
        let agree = stored.len() == modelled.len()
            && stored
                .iter()
                .zip(&modelled)
                .all(|(a, b)| a.0 == b.0 && is_close(a.1, b.1));
        assert!(agree, "on the server {stored:?}\nin the model {modelled:?}");
    }

    fn stored(&mut self, now: Instant) -> StoredLock {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut self.server.raw).unwrap();
        let server = seconds * 1000 + micros / 1000;
        let [writer, readers, gate, turn] =
            [":writer", ":readers", ":gate", ":turn"].map(|ending| self.derived_key(ending));
        let mut string = |key: &str| -> Option<(String, Instant)> {
            let value: Option<String> = redis::cmd("GET")
                .arg(key)
                .query(&mut self.server.raw)
                .unwrap();
            let left: i64 = redis::cmd("PTTL")
                .arg(key)
                .query(&mut self.server.raw)
                .unwrap();
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            value.map(|value| (value, now + left))
        };
        let (owner, turn) = (string(&writer), string(&turn));
        let mut set = |key: &str| -> HashMap<String, Instant> {
            let all: Vec<(String, u64)> = redis::cmd("ZRANGE")
                .arg(&[key, "0", "-1", "WITHSCORES"])
                .query(&mut self.server.raw)
                .unwrap();
            let left: i64 = redis::cmd("PTTL")
                .arg(key)
                .query(&mut self.server.raw)
                .unwrap();
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
            lapsed_gate_entries: Vec::new(),
            owner,
            fence: None,
            permits: BTreeMap::new(),
            count: 0,
            turn: turn.map(|(turn, end)| match turn.as_str() {
                "asked" => (ReaderTurn::Requested, end),
                "given" => (ReaderTurn::Active, end),
                other => panic!("{other}"),
            }),
        }
    }
}

fn new_request(kind: LeaseKind, waits_as: Option<usize>) -> Step {
    Step::Acquire {
        kind,
        units: 3,
        waits_as,
    }
}

fn release(lease: usize) -> Step {
    Step::Release {
        lease,
        begins_turn: true,
    }
}

#[test]
fn exclusive_and_read_write_scripts_agree_with_the_model() {
    let play = |server: &mut ComparedServer, steps: &[Step]| {
        let mut pair = Pair {
            key: Key::parse("redguard:", "x", LockKind::ReadWrite).unwrap(),
            server,
            model: NodeStore::default(),
            owners: Vec::new(),
        };
        for step in steps {
            pair.step(step);
            pair.compare();
        }
        // After all releases no key is left.
        for number in 0..pair.owners.len() {
            pair.step(&Step::Release {
                lease: number,
                begins_turn: false,
            });
            pair.step(&Step::ReleaseGateEntry(number));
        }
        pair.step(&Step::ReaderTurnEnds);
        let fence = pair.derived_key(":fence");
        pair.server.run(&["DEL", &fence]); // kept for 30 days by design
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query(&mut pair.server.raw)
            .unwrap();
        assert!(keys.is_empty(), "{keys:?}");
    };
    let mut server = ComparedServer::start();
    // Random steps reach these cases too seldom: a missed downgrade, and a whole reader turn.
    for step_after in [
        Step::Extend(0, 2),
        release(0),
        Step::ReadersRelease(HashSet::from([0, 1])),
    ] {
        server.run(&["FLUSHALL"]);
        let steps = [
            new_request(LeaseKind::Write, None),
            Step::MissDowngrade(0),
            step_after,
        ];
        play(&mut server, &steps);
    }
    for refused in [LeaseKind::Read, LeaseKind::Write] {
        server.run(&["FLUSHALL"]);
        let steps = [
            new_request(LeaseKind::Write, None),
            new_request(refused, Some(0)),
            release(1),
            new_request(LeaseKind::Write, Some(0)),
            new_request(LeaseKind::Read, None),
            release(0),
            Step::ReaderTurnEnds,
            new_request(LeaseKind::Read, None),
            new_request(LeaseKind::Write, None),
        ];
        play(&mut server, &steps);
    }
    let steps = proptest::collection::vec(step(), 1..50);
    server.play_random(256, steps, play);
}
