//! What a node keeps, as plain data: the model that fakes serve from, and that real nodes are compared with.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::protocol::holder::Sight;
use crate::protocol::key::Key;
use crate::protocol::kind::Claim;
use crate::protocol::permits::Free;
use crate::protocol::reply::{Answer, Holder};
use crate::protocol::request::{Request, Verb};
use crate::time::clock;

/// The locks of a node, and what tells who waits for them.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    slots: HashMap<Key, Slot>,
    /// Marks and turns last for so long at the least.
    pub(crate) least_sign: Duration,
}

/// One lock: each token with the moment at which it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
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

impl Memory {
    /// What is there for a key at `now`.
    pub(crate) fn slot(&mut self, key: &Key, now: Instant) -> &mut Slot {
        let slot = self.slots.entry(key.clone()).or_default();
        slot.sweep(now);
        slot
    }

    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    pub(crate) fn serve(&mut self, request: &Request, now: Instant) -> Answer {
        let (lease, until) = (&request.lease, now + Duration::from_millis(request.ttl));
        if lease.keys().only().is_none() {
            return self.serve_several(request, until, now);
        }
        let token = lease.token().text();
        let is_new = request.verb == Verb::Take;
        let sign = |end: Duration| now + end.max(self.least_sign);
        let (mark_end, turn_end) = (sign(request.trace()), sign(request.refresh));
        let slot = self.slot(lease.key(), now);
        match (request.verb, lease.claim()) {
            (Verb::Knock, _) => Answer::Yes,
            (Verb::Tell, _) => match &slot.owner {
                None => Answer::Absent,
                Some((token, end)) => Answer::Seen(Box::new(Sight {
                    digest: token.clone(),
                    owner: token
                        .rsplit_once(':')
                        .map(|(owner, _)| owner)
                        .unwrap_or_default()
                        .to_owned(),
                    remaining: Some(end.saturating_duration_since(now)),
                })),
            },
            (Verb::Adopt, _) => {
                let former = request.former.as_ref().map(|lease| lease.token().text());
                match &slot.owner {
                    Some((owner, _)) if Some(owner.as_str()) != former => return Answer::Foreign,
                    None => return Answer::Absent,
                    Some(_) => slot.owner = Some((token.to_owned(), until)),
                }
                match request.fence {
                    Some(_) => Answer::Numbered(slot.number(now)),
                    None => Answer::Yes,
                }
            }
            (Verb::Swap, _) => {
                let former = request.former.as_ref().map(|lease| lease.token().text());
                let owner = slot.owner.as_ref().map(|(owner, _)| owner.as_str());
                let is_anew = owner.is_none();
                if !is_anew && owner != former {
                    return Answer::Foreign;
                }
                slot.owner = Some((token.to_owned(), until));
                let number = request.fence.map(|_| slot.number(now));
                match (is_anew, number) {
                    (true, number) => Answer::Anew(number),
                    (false, Some(number)) => Answer::Numbered(number),
                    (false, None) => Answer::Yes,
                }
            }
            (Verb::Break, _) => given(slot.owner.take().is_some()),
            (verb, Claim::Permit { slot: permit, of }) => {
                slot.serve_permit(verb, permit, of, (token, until), now)
            }
            (_, Claim::Gate) => given(slot.gate.remove(token).is_some()),
            (Verb::Take | Verb::PutBack, Claim::Read) => {
                let refused = slot.refuses_reader(is_new);
                if refused.is_none() {
                    slot.readers.insert(token.to_owned(), until);
                } else if !request.refresh.is_zero() && !slot.is_turn(Turn::Given) {
                    slot.turn = Some((Turn::Asked, mark_end));
                }
                refused.map_or(Answer::Yes, |(by, end)| held(by, end, now))
            }
            (Verb::Take | Verb::PutBack, _) => {
                let refused = slot.refuses_writer(is_new);
                if refused.is_none() {
                    slot.owner = Some((token.to_owned(), until));
                    if request.fence.is_some() {
                        return Answer::Numbered(slot.number(now));
                    }
                } else if let Some(place) = &request.place {
                    let end = now + request.trace();
                    slot.gate.insert(place.token().text().to_owned(), end);
                }
                refused.map_or(Answer::Yes, |(by, end)| held(by, end, now))
            }
            (Verb::Raise, _) => slot.mine(token, |slot, _| {
                slot.fence = slot.fence.max(request.fence);
            }),
            (Verb::Extend | Verb::Release, Claim::Read) => {
                let owned = slot.owner.take_if(|(owner, _)| owner == token);
                if owned.is_some() && request.verb == Verb::Release && !request.refresh.is_zero() {
                    slot.give_turn(now + request.refresh);
                }
                let found = slot.readers.remove(token).or(owned.map(|(_, end)| end));
                if let (Some(end), Verb::Extend) = (found, request.verb) {
                    slot.readers.insert(token.to_owned(), end.max(until));
                }
                given(found.is_some())
            }
            (Verb::Downgrade, _) => {
                if slot.readers.contains_key(token) {
                    return Answer::Yes;
                }
                slot.mine(token, |slot, end| {
                    slot.owner = None;
                    slot.readers.insert(token.to_owned(), end);
                    slot.give_turn(turn_end);
                })
            }
            (Verb::Extend, _) => slot.mine(token, |slot, end| {
                slot.owner = Some((token.to_owned(), end.max(until)));
            }),
            (Verb::Release, _) => slot.mine(token, |slot, _| {
                slot.owner = None;
                if !request.refresh.is_zero() {
                    slot.give_turn(turn_end);
                }
            }),
        }
    }
}

impl Memory {
    /// The same for a lock of several keys: all of it or nothing.
    fn serve_several(&mut self, request: &Request, until: Instant, now: Instant) -> Answer {
        let (keys, token) = (request.lease.keys().all(), request.lease.token().text());
        let owners: Vec<Option<(String, Instant)>> = keys
            .iter()
            .map(|key| self.slot(key, now).owner.clone())
            .collect();
        let is_other = |owner: &Option<(String, Instant)>| {
            owner.as_ref().is_some_and(|(other, _)| other != token)
        };
        let is_take = matches!(request.verb, Verb::Take | Verb::PutBack);
        let others = (0..keys.len()).filter(|key| is_other(&owners[*key]));
        // Of those that end at the same time the first.
        let end = |key: &usize| owners[*key].as_ref().map(|(_, end)| *end);
        let longest = others.rev().max_by_key(end);
        if let (Some(key), true) = (longest, is_take) {
            let end = end(&key).unwrap_or(now);
            return held(Holder::Of(key), end, now);
        }
        let absent = owners.iter().any(Option::is_none);
        let ours = longest.is_none() && !absent;
        let numbers = (is_take && request.fence.is_some()).then(|| {
            let each = keys.iter().map(|key| self.slot(key, now).number(now));
            each.max().unwrap_or_default()
        });
        for (key, owner) in keys.iter().zip(owners) {
            let slot = self.slot(key, now);
            let is_ours = owner.as_ref().is_some_and(|(other, _)| other == token);
            let end = owner.map_or(until, |(_, end)| end.max(until));
            match request.verb {
                Verb::Take | Verb::PutBack => {
                    slot.owner = Some((token.to_owned(), end));
                    slot.fence = numbers.or(slot.fence);
                }
                Verb::Extend if ours => slot.owner = Some((token.to_owned(), end)),
                Verb::Raise if ours => slot.fence = slot.fence.max(request.fence),
                Verb::Release if is_ours => slot.owner = None,
                _ => {}
            }
        }
        match (is_take, numbers) {
            (true, Some(number)) => Answer::Numbered(number),
            (true, None) => Answer::Yes,
            (false, _) if longest.is_some() => Answer::Foreign,
            (false, _) => given(!absent),
        }
    }
}

impl Slot {
    fn sweep(&mut self, now: Instant) {
        self.owner.take_if(|(_, end)| *end <= now);
        self.readers.retain(|_, end| *end > now);
        self.gate.retain(|_, end| *end > now);
        self.turn.take_if(|(_, end)| *end <= now);
        self.permits.retain(|_, (_, end)| *end > now);
    }

    fn serve_permit(
        &mut self,
        verb: Verb,
        permit: u16,
        of: u16,
        (token, until): (&str, Instant),
        now: Instant,
    ) -> Answer {
        let held = self.permits.get(&permit).cloned();
        let is_ours = held.as_ref().is_some_and(|(owner, _)| owner == token);
        let last = held.as_ref().map_or(until, |(_, end)| until.max(*end));
        let next = self.permits.values().map(|(_, end)| *end - now).min();
        match (verb, next) {
            (Verb::Take | Verb::PutBack, Some(_)) if self.count != of => {
                return Answer::OtherPermits(self.count);
            }
            (Verb::Take | Verb::PutBack, Some(next)) if held.is_some() && !is_ours => {
                let mut words = vec![0; usize::from(of.div_ceil(32))];
                for free in (0..of).filter(|permit| !self.permits.contains_key(permit)) {
                    words[usize::from(free / 32)] |= 1 << (free % 32);
                }
                let free = Free::read(&words, of);
                return free.map_or(Answer::Foreign, |free| Answer::NotThisOne(free, next));
            }
            (Verb::Take | Verb::PutBack, _) => self.count = of,
            (Verb::Extend, _) if is_ours => {}
            (Verb::Release, _) if is_ours => {
                self.permits.remove(&permit);
                return Answer::Yes;
            }
            _ if held.is_some() => return Answer::Foreign,
            _ => return Answer::Absent,
        }
        self.permits.insert(permit, (token.to_owned(), last));
        Answer::Yes
    }

    /// An absent fence begins at the time in µs, as on a server.
    fn number(&mut self, now: Instant) -> u64 {
        let next = self.fence.unwrap_or_else(|| clock::micros(now)) + 1;
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

    fn refuses_reader(&self, heeds_gate: bool) -> Option<(Holder, Instant)> {
        match (&self.owner, self.gate.values().max()) {
            (Some((_, end)), _) => Some((Holder::One, *end)),
            (None, Some(end)) if heeds_gate && !self.is_turn(Turn::Given) => {
                Some((Holder::Gate, *end))
            }
            _ => None,
        }
    }

    fn refuses_writer(&self, heeds_turn: bool) -> Option<(Holder, Instant)> {
        match (&self.owner, self.readers.values().max(), self.turn) {
            (Some((_, end)), _, _) => Some((Holder::One, *end)),
            (None, Some(end), _) => Some((Holder::Readers, *end)),
            (None, None, Some((Turn::Given, end))) if heeds_turn => Some((Holder::Turn, end)),
            _ => None,
        }
    }

    fn mine(&mut self, token: &str, act: impl FnOnce(&mut Slot, Instant)) -> Answer {
        match self.owner.clone() {
            None => Answer::Absent,
            Some((owner, _)) if owner != token => Answer::Foreign,
            Some((_, end)) => {
                act(self, end);
                Answer::Yes
            }
        }
    }
}

fn given(found: bool) -> Answer {
    match found {
        true => Answer::Yes,
        false => Answer::Absent,
    }
}

fn held(by: Holder, end: Instant, now: Instant) -> Answer {
    Answer::Held(by, Some(end.saturating_duration_since(now)))
}
