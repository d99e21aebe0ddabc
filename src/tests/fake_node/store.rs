//! What a node keeps, as plain data: the model that fakes serve from, and that real nodes are compared with.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::protocol::holder::NodeHolder;
use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::permits::FreePermits;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::time::clock;

/// The locks of a node, and what tells who waits for them.
#[derive(Debug, Default)]
pub(crate) struct NodeStore {
    slots: HashMap<Key, StoredLock>,
    /// Marks and turns last for so long at the least.
    pub(crate) least_sign: Duration,
}

/// One lock: each token with the moment at which it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredLock {
    /// The owner of an exclusive lock, or the writer.
    pub(crate) owner: Option<(String, Instant)>,
    pub(crate) readers: HashMap<String, Instant>,
    pub(crate) gate: HashMap<String, Instant>,
    pub(crate) turn: Option<(Turn, Instant)>,
    /// The last number that was given out.
    pub(crate) fence: Option<u64>,
    /// The permits of a semaphore that are held, and how many it has.
    pub(crate) permits: BTreeMap<u16, (String, Instant)>,
    pub(crate) count: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Asked,
    Given,
}

impl NodeStore {
    /// What is there for a key at `now`.
    pub(crate) fn slot(&mut self, key: &Key, now: Instant) -> &mut StoredLock {
        let slot = self.slots.entry(key.clone()).or_default();
        slot.sweep(now);
        slot
    }

    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    pub(crate) fn serve(&mut self, request: &Request, now: Instant) -> Reply {
        let (lease, until) = (&request.lease, now + Duration::from_millis(request.ttl));
        if lease.keys().single().is_none() {
            return self.serve_several(request, until, now);
        }
        let token = lease.token().text();
        let is_new = request.op == Op::Acquire;
        let sign = |end: Duration| now + end.max(self.least_sign);
        let (mark_end, turn_end) = (sign(request.marker_ttl()), sign(request.refresh_interval));
        let slot = self.slot(lease.key(), now);
        match (request.op, lease.kind()) {
            (Op::WakeListener, _) => Reply::Done,
            (Op::Inspect, _) => match &slot.owner {
                None => Reply::Absent,
                Some((token, end)) => Reply::Holder(Box::new(NodeHolder {
                    digest: token.clone(),
                    owner: token
                        .rsplit_once(':')
                        .map(|(owner, _)| owner)
                        .unwrap_or_default()
                        .to_owned(),
                    remaining: Some(end.saturating_duration_since(now)),
                })),
            },
            (Op::Adopt, _) => {
                let former = request
                    .former_lease
                    .as_ref()
                    .map(|lease| lease.token().text());
                match &slot.owner {
                    Some((owner, _)) if Some(owner.as_str()) != former => return Reply::OtherToken,
                    None => return Reply::Absent,
                    Some(_) => slot.owner = Some((token.to_owned(), until)),
                }
                match request.min_fence {
                    Some(_) => Reply::Fenced(slot.number(now)),
                    None => Reply::Done,
                }
            }
            (Op::Swap, _) => {
                let former = request
                    .former_lease
                    .as_ref()
                    .map(|lease| lease.token().text());
                let owner = slot.owner.as_ref().map(|(owner, _)| owner.as_str());
                let is_anew = owner.is_none();
                if !is_anew && owner != former {
                    return Reply::OtherToken;
                }
                slot.owner = Some((token.to_owned(), until));
                let number = request.min_fence.map(|_| slot.number(now));
                match (is_anew, number) {
                    (true, number) => Reply::SwappedAbsent(number),
                    (false, Some(number)) => Reply::Fenced(number),
                    (false, None) => Reply::Done,
                }
            }
            (Op::ForceRelease, _) => given(slot.owner.take().is_some()),
            (
                op,
                LeaseKind::Permit {
                    index: permit,
                    total: of,
                },
            ) => slot.serve_permit(op, permit, of, (token, until), now),
            (_, LeaseKind::GateEntry) => given(slot.gate.remove(token).is_some()),
            (Op::Acquire | Op::Restore, LeaseKind::Read) => {
                let refused = slot.refuses_reader(is_new);
                if refused.is_none() {
                    slot.readers.insert(token.to_owned(), until);
                } else if !request.refresh_interval.is_zero() && !slot.is_turn(Turn::Given) {
                    slot.turn = Some((Turn::Asked, mark_end));
                }
                refused.map_or(Reply::Done, |(by, end)| held(by, end, now))
            }
            (Op::Acquire | Op::Restore, _) => {
                let refused = slot.refuses_writer(is_new);
                if refused.is_none() {
                    slot.owner = Some((token.to_owned(), until));
                    if request.min_fence.is_some() {
                        return Reply::Fenced(slot.number(now));
                    }
                } else if let Some(place) = &request.gate_entry {
                    let end = now + request.marker_ttl();
                    slot.gate.insert(place.token().text().to_owned(), end);
                }
                refused.map_or(Reply::Done, |(by, end)| held(by, end, now))
            }
            (Op::RaiseFence, _) => slot.mine(token, |slot, _| {
                slot.fence = slot.fence.max(request.min_fence);
            }),
            (Op::Extend | Op::Release, LeaseKind::Read) => {
                let owned = slot.owner.take_if(|(owner, _)| owner == token);
                if owned.is_some()
                    && request.op == Op::Release
                    && !request.refresh_interval.is_zero()
                {
                    slot.give_turn(now + request.refresh_interval);
                }
                let found = slot.readers.remove(token).or(owned.map(|(_, end)| end));
                if let (Some(end), Op::Extend) = (found, request.op) {
                    slot.readers.insert(token.to_owned(), end.max(until));
                }
                given(found.is_some())
            }
            (Op::Downgrade, _) => {
                if slot.readers.contains_key(token) {
                    return Reply::Done;
                }
                slot.mine(token, |slot, end| {
                    slot.owner = None;
                    slot.readers.insert(token.to_owned(), end);
                    slot.give_turn(turn_end);
                })
            }
            (Op::Extend, _) => slot.mine(token, |slot, end| {
                slot.owner = Some((token.to_owned(), end.max(until)));
            }),
            (Op::Release, _) => slot.mine(token, |slot, _| {
                slot.owner = None;
                if !request.refresh_interval.is_zero() {
                    slot.give_turn(turn_end);
                }
            }),
        }
    }
}

impl NodeStore {
    /// The same for a lock of several keys: all of it or nothing.
    fn serve_several(&mut self, request: &Request, until: Instant, now: Instant) -> Reply {
        let (keys, token) = (
            request.lease.keys().as_slice(),
            request.lease.token().text(),
        );
        let owners: Vec<Option<(String, Instant)>> = keys
            .iter()
            .map(|key| self.slot(key, now).owner.clone())
            .collect();
        let is_other = |owner: &Option<(String, Instant)>| {
            owner.as_ref().is_some_and(|(other, _)| other != token)
        };
        let is_take = matches!(request.op, Op::Acquire | Op::Restore);
        let others = (0..keys.len()).filter(|key| is_other(&owners[*key]));
        // Of those that end at the same time the first.
        let end = |key: &usize| owners[*key].as_ref().map(|(_, end)| *end);
        let longest = others.rev().max_by_key(end);
        if let (Some(key), true) = (longest, is_take) {
            let end = end(&key).unwrap_or(now);
            return held(Blocker::OwnerOfKey(key), end, now);
        }
        let absent = owners.iter().any(Option::is_none);
        let ours = longest.is_none() && !absent;
        let numbers = (is_take && request.min_fence.is_some()).then(|| {
            let each = keys.iter().map(|key| self.slot(key, now).number(now));
            each.max().unwrap_or_default()
        });
        for (key, owner) in keys.iter().zip(owners) {
            let slot = self.slot(key, now);
            let is_ours = owner.as_ref().is_some_and(|(other, _)| other == token);
            let end = owner.map_or(until, |(_, end)| end.max(until));
            match request.op {
                Op::Acquire | Op::Restore => {
                    slot.owner = Some((token.to_owned(), end));
                    slot.fence = numbers.or(slot.fence);
                }
                Op::Extend if ours => slot.owner = Some((token.to_owned(), end)),
                Op::RaiseFence if ours => slot.fence = slot.fence.max(request.min_fence),
                Op::Release if is_ours => slot.owner = None,
                _ => {}
            }
        }
        match (is_take, numbers) {
            (true, Some(number)) => Reply::Fenced(number),
            (true, None) => Reply::Done,
            (false, _) if longest.is_some() => Reply::OtherToken,
            (false, _) => given(!absent),
        }
    }
}

impl StoredLock {
    fn sweep(&mut self, now: Instant) {
        self.owner.take_if(|(_, end)| *end <= now);
        self.readers.retain(|_, end| *end > now);
        self.gate.retain(|_, end| *end > now);
        self.turn.take_if(|(_, end)| *end <= now);
        self.permits.retain(|_, (_, end)| *end > now);
    }

    fn serve_permit(
        &mut self,
        op: Op,
        permit: u16,
        of: u16,
        (token, until): (&str, Instant),
        now: Instant,
    ) -> Reply {
        let held = self.permits.get(&permit).cloned();
        let is_ours = held.as_ref().is_some_and(|(owner, _)| owner == token);
        let last = held.as_ref().map_or(until, |(_, end)| until.max(*end));
        let next = self.permits.values().map(|(_, end)| *end - now).min();
        match (op, next) {
            (Op::Acquire | Op::Restore, Some(_)) if self.count != of => {
                return Reply::PermitCountMismatch(self.count);
            }
            (Op::Acquire | Op::Restore, Some(next)) if held.is_some() && !is_ours => {
                let mut words = vec![0; usize::from(of.div_ceil(32))];
                for free in (0..of).filter(|permit| !self.permits.contains_key(permit)) {
                    words[usize::from(free / 32)] |= 1 << (free % 32);
                }
                let free = FreePermits::from_words(&words, of);
                return free.map_or(Reply::OtherToken, |free| Reply::PermitTaken(free, next));
            }
            (Op::Acquire | Op::Restore, _) => self.count = of,
            (Op::Extend, _) if is_ours => {}
            (Op::Release, _) if is_ours => {
                self.permits.remove(&permit);
                return Reply::Done;
            }
            _ if held.is_some() => return Reply::OtherToken,
            _ => return Reply::Absent,
        }
        self.permits.insert(permit, (token.to_owned(), last));
        Reply::Done
    }

    /// An absent fence begins at the time in µs, as on a server.
    fn number(&mut self, now: Instant) -> u64 {
        let next = self.fence.unwrap_or_else(|| clock::to_micros(now)) + 1;
        self.fence = Some(next);
        next
    }

    fn is_turn(&self, turn: Turn) -> bool {
        self.turn.is_some_and(|(now, _)| now == turn)
    }

    fn give_turn(&mut self, end: Instant) {
        if self.is_turn(Turn::Asked) {
            self.turn = Some((Turn::Given, end));
        }
    }

    fn refuses_reader(&self, heeds_gate: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.gate.values().max()) {
            (Some((_, end)), _) => Some((Blocker::Owner, *end)),
            (None, Some(end)) if heeds_gate && !self.is_turn(Turn::Given) => {
                Some((Blocker::WaitingWriter, *end))
            }
            _ => None,
        }
    }

    fn refuses_writer(&self, heeds_turn: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.readers.values().max(), self.turn) {
            (Some((_, end)), _, _) => Some((Blocker::Owner, *end)),
            (None, Some(end), _) => Some((Blocker::Readers, *end)),
            (None, None, Some((Turn::Given, end))) if heeds_turn => {
                Some((Blocker::ReaderTurn, end))
            }
            _ => None,
        }
    }

    fn mine(&mut self, token: &str, act: impl FnOnce(&mut StoredLock, Instant)) -> Reply {
        match self.owner.clone() {
            None => Reply::Absent,
            Some((owner, _)) if owner != token => Reply::OtherToken,
            Some((_, end)) => {
                act(self, end);
                Reply::Done
            }
        }
    }
}

fn given(found: bool) -> Reply {
    match found {
        true => Reply::Done,
        false => Reply::Absent,
    }
}

fn held(by: Blocker, end: Instant, now: Instant) -> Reply {
    Reply::Held(by, Some(end.saturating_duration_since(now)))
}
