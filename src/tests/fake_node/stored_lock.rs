//! One lock of a node as plain data, and what each request does to it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::protocol::holder::NodeHolder;
use crate::protocol::kind::LeaseKind;
use crate::protocol::permits::FreePermits;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::time::clock;

/// One lock. Each token is stored with the time of its expiry.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredLock {
    /// The owner of an exclusive lock, or the writer.
    pub(crate) owner: Option<(String, Instant)>,
    pub(crate) readers: HashMap<String, Instant>,
    pub(crate) gate: HashMap<String, Instant>,
    /// The gate entries that have ended by time, and were not raised again.
    pub(crate) lapsed_gate_entries: Vec<String>,
    pub(crate) turn: Option<(ReaderTurn, Instant)>,
    /// The fence counter.
    pub(crate) fence: Option<u64>,
    /// The permits of a semaphore that are held; `count` is its total.
    pub(crate) permits: BTreeMap<u16, (String, Instant)>,
    pub(crate) count: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReaderTurn {
    Requested,
    Active,
}

/// A request for one lock, with the times that follow from it.
pub(super) struct StoredLockCall<'a> {
    pub(super) request: &'a Request,
    pub(super) token: &'a str,
    /// When a token that is stored or extended ends.
    pub(super) until: Instant,
    /// When a reader marker ends.
    pub(super) marker_until: Instant,
    /// When a reader turn ends.
    pub(super) turn_until: Instant,
    pub(super) now: Instant,
}

impl StoredLockCall<'_> {
    /// Returns the token that this request replaces.
    fn former_token(&self) -> Option<String> {
        let former = self.request.former_lease.as_ref();
        former.map(|lease| lease.token().text())
    }
}

impl StoredLock {
    /// Removes what has expired.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.owner.take_if(|(_, end)| *end <= now);
        self.readers.retain(|_, end| *end > now);
        let lapsed = self.gate.extract_if(|_, end| *end <= now);
        self.lapsed_gate_entries
            .extend(lapsed.map(|(token, _)| token));
        self.turn.take_if(|(_, end)| *end <= now);
        self.permits.retain(|_, (_, end)| *end > now);
    }

    /// Serves a request for this lock alone.
    pub(super) fn serve(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let StoredLockCall { request, token, .. } = *call;
        match (request.op, request.lease.kind()) {
            // `NodeStore::run` serves notices and the waiting list.
            (Op::WakeListener | Op::Notify | Op::TakePlace | Op::LeavePlace, _) => Reply::Done,
            (Op::Inspect, _) => self.inspect(call.now),
            (Op::Adopt, _) => self.adopt(call),
            (Op::Swap, _) => self.swap(call),
            (Op::ForceRelease, _) => done_if(self.owner.take().is_some()),
            (_, LeaseKind::Permit { index, total }) => self.serve_permit(call, index, total),
            (_, LeaseKind::GateEntry) => done_if(self.gate.remove(token).is_some()),
            (Op::Acquire | Op::Restore, LeaseKind::Read) => self.acquire_read(call),
            (Op::Acquire | Op::Restore, _) => self.acquire(call),
            (Op::RaiseFence, _) => self.with_owner(token, |lock, _| {
                lock.fence = lock.fence.max(request.min_fence);
            }),
            (Op::Extend | Op::Release, LeaseKind::Read) => self.serve_reader(call),
            (Op::Downgrade, _) => self.downgrade(call),
            (Op::Extend, _) => self.with_owner(token, |lock, end| {
                lock.owner = Some((token.to_owned(), end.max(call.until)));
            }),
            (Op::Release, _) => self.with_owner(token, |lock, _| {
                lock.owner = kept(request, call.now);
                if !request.refresh_interval.is_zero() {
                    lock.begin_turn(call.turn_until);
                }
            }),
        }
    }

    fn inspect(&self, now: Instant) -> Reply {
        match &self.owner {
            None => Reply::Absent,
            Some((token, end)) => Reply::Holder(Box::new(NodeHolder {
                digest: token.clone(),
                owner: label_of(token),
                remaining: Some(end.saturating_duration_since(now)),
                since: None,
            })),
        }
    }

    fn adopt(&mut self, call: &StoredLockCall<'_>) -> Reply {
        match &self.owner {
            Some((owner, _)) if Some(owner) != call.former_token().as_ref() => {
                return Reply::OtherToken;
            }
            None => return Reply::Absent,
            Some(_) => self.owner = Some((call.token.to_owned(), call.until)),
        }
        match call.request.min_fence {
            Some(_) => Reply::Fenced(self.next_fence(call.now)),
            None => Reply::Done,
        }
    }

    fn swap(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let owner = self.owner.as_ref().map(|(owner, _)| owner);
        let is_absent = owner.is_none();
        if !is_absent && owner != call.former_token().as_ref() {
            return Reply::OtherToken;
        }
        self.owner = Some((call.token.to_owned(), call.until));
        let fence = call.request.min_fence.map(|_| self.next_fence(call.now));
        match (is_absent, fence) {
            (true, fence) => Reply::SwappedAbsent(fence),
            (false, Some(fence)) => Reply::Fenced(fence),
            (false, None) => Reply::Done,
        }
    }

    fn acquire_read(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let refused = self.refuses_reader(call.request.op == Op::Acquire);
        if refused.is_none() {
            self.readers.insert(call.token.to_owned(), call.until);
        } else if !call.request.refresh_interval.is_zero() && !self.turn_is(ReaderTurn::Active) {
            self.turn = Some((ReaderTurn::Requested, call.marker_until));
        }
        self.refused_or_done(refused, call)
    }

    fn acquire(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let request = call.request;
        let refused = self.refuses_writer(request.op == Op::Acquire);
        if refused.is_none() {
            self.owner = Some((call.token.to_owned(), call.until));
            if request.min_fence.is_some() {
                return Reply::Fenced(self.next_fence(call.now));
            }
        } else if let Some(gate_entry) = &request.gate_entry {
            let end = call.now + request.marker_ttl();
            self.raise_gate_entry(&gate_entry.token().text(), end);
        }
        self.refused_or_done(refused, call)
    }

    fn refused_or_done(
        &self,
        refused: Option<(Blocker, Instant)>,
        call: &StoredLockCall<'_>,
    ) -> Reply {
        let Some((by, end)) = refused else {
            return Reply::Done;
        };
        // A refused `SET` reports the owner label only where it is asked for.
        let tells = !call.request.is_plain_set() || call.request.wants_owner;
        let owner = self.owner.as_ref();
        let label = owner.filter(|_| tells && by == Blocker::Owner);
        held(
            by,
            end,
            label.and_then(|(owner, _)| label_of(owner)),
            call.now,
        )
    }

    /// Extends or releases a reader, which a node that missed its downgrade has as the writer.
    fn serve_reader(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let (request, token) = (call.request, call.token);
        let owned = self.owner.take_if(|(owner, _)| owner == token);
        if owned.is_some() && request.op == Op::Release && !request.refresh_interval.is_zero() {
            self.begin_turn(call.now + request.refresh_interval);
        }
        let found = self.readers.remove(token).or(owned.map(|(_, end)| end));
        if let (Some(end), Op::Extend) = (found, request.op) {
            self.readers.insert(token.to_owned(), end.max(call.until));
        }
        done_if(found.is_some())
    }

    fn downgrade(&mut self, call: &StoredLockCall<'_>) -> Reply {
        let token = call.token;
        if self.readers.contains_key(token) {
            return Reply::Done;
        }
        self.with_owner(token, |lock, end| {
            lock.owner = None;
            lock.readers.insert(token.to_owned(), end);
            lock.begin_turn(call.turn_until);
        })
    }

    fn raise_gate_entry(&mut self, token: &str, end: Instant) {
        self.lapsed_gate_entries.retain(|lapsed| lapsed != token);
        self.gate.insert(token.to_owned(), end);
    }

    fn serve_permit(&mut self, call: &StoredLockCall<'_>, permit: u16, total: u16) -> Reply {
        let (op, token, until, now) = (call.request.op, call.token, call.until, call.now);
        let held = self.permits.get(&permit).cloned();
        let is_owner = held.as_ref().is_some_and(|(owner, _)| owner == token);
        let last = held.as_ref().map_or(until, |(_, end)| until.max(*end));
        let next = self.permits.values().map(|(_, end)| *end - now).min();
        match (op, next) {
            (Op::Acquire | Op::Restore, Some(_)) if self.count != total => {
                return Reply::PermitCountMismatch(self.count);
            }
            (Op::Acquire | Op::Restore, Some(next)) if held.is_some() && !is_owner => {
                let mut words = vec![0; usize::from(total.div_ceil(32))];
                for free in (0..total).filter(|permit| !self.permits.contains_key(permit)) {
                    words[usize::from(free / 32)] |= 1 << (free % 32);
                }
                let free = FreePermits::from_words(&words, total);
                return free.map_or(Reply::OtherToken, |free| Reply::PermitTaken(free, next));
            }
            (Op::Acquire | Op::Restore, _) => self.count = total,
            (Op::Extend, _) if is_owner => {}
            (Op::Release, _) if is_owner => {
                self.permits.remove(&permit);
                return Reply::Done;
            }
            _ if held.is_some() => return Reply::OtherToken,
            _ => return Reply::Absent,
        }
        self.permits.insert(permit, (token.to_owned(), last));
        Reply::Done
    }

    /// Increments the fence counter. An absent counter starts at the time in µs, as on a server.
    pub(super) fn next_fence(&mut self, now: Instant) -> u64 {
        let next = self.fence.unwrap_or_else(|| clock::to_micros(now)) + 1;
        self.fence = Some(next);
        next
    }

    fn turn_is(&self, turn: ReaderTurn) -> bool {
        self.turn.is_some_and(|(now, _)| now == turn)
    }

    fn begin_turn(&mut self, end: Instant) {
        if self.turn_is(ReaderTurn::Requested) {
            self.turn = Some((ReaderTurn::Active, end));
        }
    }

    fn refuses_reader(&self, respects_gate: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.gate.values().max()) {
            (Some((_, end)), _) => Some((Blocker::Owner, *end)),
            (None, Some(end)) if respects_gate && !self.turn_is(ReaderTurn::Active) => {
                Some((Blocker::WaitingWriter, *end))
            }
            _ => None,
        }
    }

    fn refuses_writer(&self, respects_turn: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.readers.values().max(), self.turn) {
            (Some((_, end)), _, _) => Some((Blocker::Owner, *end)),
            (None, Some(end), _) => Some((Blocker::Readers, *end)),
            (None, None, Some((ReaderTurn::Active, end))) if respects_turn => {
                Some((Blocker::ReaderTurn, end))
            }
            _ => None,
        }
    }

    fn with_owner(&mut self, token: &str, act: impl FnOnce(&mut StoredLock, Instant)) -> Reply {
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

/// Returns for how long a release keeps the lock, in ms; 0 if it deletes the lock. A simulated
/// release has that time in place of a TTL.
pub(super) fn keep_millis(request: &Request, now: Instant) -> u64 {
    request.keep_millis(now).max(request.ttl)
}

/// Returns the owner after a release: none, or the former one for the rest of its minimum time.
pub(super) fn kept(request: &Request, now: Instant) -> Option<(String, Instant)> {
    let left = keep_millis(request, now);
    let end = now + Duration::from_millis(left);
    (left > 0).then(|| (request.lease.token().text(), end))
}

pub(super) fn done_if(found: bool) -> Reply {
    match found {
        true => Reply::Done,
        false => Reply::Absent,
    }
}

pub(super) fn held(by: Blocker, end: Instant, label: Option<Box<str>>, now: Instant) -> Reply {
    Reply::Held(by, Some(end.saturating_duration_since(now)), label)
}

/// Returns the owner label of a token.
pub(super) fn label_of(token: &str) -> Option<Box<str>> {
    token.rsplit_once(':').map(|(label, _)| Box::from(label))
}
