//! The locks of a node as plain data. Fake nodes serve from it, and `store_conformance` compares it
//! with real servers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::protocol::key::{Channel, Key};
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::messages::WaitingList;
use crate::tests::fake_node::stored_lock::{
    StoredLock, StoredLockCall, done_if, held, kept, label_of,
};

/// The locks, gate entries, reader markers and reader turns of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeStore {
    locks: HashMap<Key, StoredLock>,
    /// The waiting list of each channel.
    pub(super) waiting: HashMap<Channel, WaitingList>,
    /// The minimum lifetime of reader markers and reader turns.
    pub(crate) min_marker_ttl: Duration,
}

impl NodeStore {
    /// Returns the lock of a key as it is at `now`.
    pub(crate) fn stored_lock(&mut self, key: &Key, now: Instant) -> &mut StoredLock {
        let lock = self.locks.entry(key.clone()).or_default();
        lock.sweep(now);
        lock
    }

    /// Returns all locks as they are at `now`, in no order.
    pub(crate) fn locks(&mut self, now: Instant) -> impl Iterator<Item = (&Key, &StoredLock)> {
        self.locks.values_mut().for_each(|lock| lock.sweep(now));
        self.locks.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.locks.clear();
        self.waiting.clear();
    }

    pub(crate) fn serve(&mut self, request: &Request, now: Instant) -> Reply {
        let (lease, until) = (&request.lease, now + Duration::from_millis(request.ttl));
        if lease.keys().single().is_none() {
            return self.serve_multi_key(request, until, now);
        }
        let marker_end = |end: Duration| now + end.max(self.min_marker_ttl);
        let call = StoredLockCall {
            request,
            token: &lease.token().text(),
            until,
            marker_until: marker_end(request.marker_ttl()),
            turn_until: marker_end(request.refresh_interval),
            now,
        };
        self.stored_lock(lease.key(), now).serve(&call)
    }

    /// Serves a request for several keys: all of them or none.
    fn serve_multi_key(&mut self, request: &Request, until: Instant, now: Instant) -> Reply {
        let (keys, token) = (
            request.lease.keys().as_slice(),
            &*request.lease.token().text(),
        );
        let owners: Vec<Option<(String, Instant)>> = keys
            .iter()
            .map(|key| self.stored_lock(key, now).owner.clone())
            .collect();
        let is_other = |owner: &Option<(String, Instant)>| {
            owner.as_ref().is_some_and(|(other, _)| other != token)
        };
        let is_acquire = matches!(request.op, Op::Acquire | Op::Restore);
        let others = (0..keys.len()).filter(|key| is_other(&owners[*key]));
        // Among keys with the same expiry, scripts report the first.
        let end = |key: &usize| owners[*key].as_ref().map(|(_, end)| *end);
        let longest = others.rev().max_by_key(end);
        if let (Some(key), true) = (longest, is_acquire) {
            let end = end(&key).unwrap_or(now);
            let label = owners[key].as_ref().and_then(|(owner, _)| label_of(owner));
            return held(Blocker::OwnerOfKey(key), end, label, now);
        }
        let absent = owners.iter().any(Option::is_none);
        let ours = longest.is_none() && !absent;
        let fences = (is_acquire && request.min_fence.is_some()).then(|| {
            let each = keys
                .iter()
                .map(|key| self.stored_lock(key, now).next_fence(now));
            each.max().unwrap_or_default()
        });
        for (key, owner) in keys.iter().zip(owners) {
            let lock = self.stored_lock(key, now);
            let is_owner = owner.as_ref().is_some_and(|(other, _)| other == token);
            let end = owner.map_or(until, |(_, end)| end.max(until));
            match request.op {
                Op::Acquire | Op::Restore => {
                    lock.owner = Some((token.to_owned(), end));
                    lock.fence = fences.or(lock.fence);
                }
                Op::Extend if ours => lock.owner = Some((token.to_owned(), end)),
                Op::RaiseFence if ours => lock.fence = lock.fence.max(request.min_fence),
                Op::Release if is_owner => lock.owner = kept(request, now),
                _ => {}
            }
        }
        match (is_acquire, fences) {
            (true, Some(fence)) => Reply::Fenced(fence),
            (true, None) => Reply::Done,
            (false, _) if longest.is_some() => Reply::OtherToken,
            (false, _) => done_if(!absent),
        }
    }
}
