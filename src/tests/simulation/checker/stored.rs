//! The tokens on the servers, compared with the beliefs of holders (S1, S3, S5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::lease::{Lease, LeaseState};
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::{HoldId, HoldState};
use crate::tests::simulation::network::network::NetworkState;
use crate::tests::simulation::network::server::Server;
use crate::tests::simulation::plan::locks::STRANGERS_LOCK;
use crate::tests::simulation::world;

/// How long the other client holds its lock.
const FOR_EVER: Duration = Duration::from_secs(100_000_000);

impl Server {
    /// Returns for how many of its keys the server stores the token of a lease.
    fn stored_keys(&mut self, lease: &Lease, now: Instant) -> usize {
        let (shown, token) = (self.clock.at(now), lease.token().text());
        let keys = lease.keys().as_slice().iter();
        let is_stored = |key: &&Key| {
            let lock = self.store.stored_lock(key, shown);
            let owner = lock.owner.iter().map(|(owner, _)| owner);
            let permits = lock.permits.values().map(|(owner, _)| owner);
            let mut tokens = owner.chain(lock.readers.keys()).chain(permits);
            tokens.any(|stored| *stored == token)
        };
        keys.filter(is_stored).count()
    }
}

/// Returns for each server whether it stores the token of a lease under each of its keys.
fn stored_on(state: &mut NetworkState, lease: &Lease, now: Instant) -> Vec<bool> {
    let (servers, keys) = (state.servers.iter_mut(), lease.keys().as_slice().len());
    let stored = servers.map(|server| server.stored_keys(lease, now) == keys);
    stored.collect()
}

/// Returns whether a quorum of servers is among these.
fn is_quorum(servers: &[bool]) -> bool {
    servers.iter().filter(|stored| **stored).count() > servers.len() / 2
}

/// Adds the servers that store a lock to those that have stored it. That list is empty at first.
fn add_stored(since: &mut Vec<bool>, stored: &[bool]) {
    since.resize(stored.len(), false);
    let both = since.iter_mut().zip(stored);
    both.for_each(|(since, now)| *since |= now);
}

impl Checker {
    fn lease(&self, hold: HoldId) -> Arc<Lease> {
        self.with(|state| Arc::clone(&state.holds[hold].lease))
    }

    pub(super) fn report_hold(&self, what: &str, hold: HoldId) {
        let text = self.with(|state| state.holds[hold].describe());
        self.report(format!("{what}: {text}"));
    }

    /// Checks that the locks in which their holders believe are stored on a quorum (S1, S5).
    pub(super) fn check_stored(&self, is_meant: impl Fn(HoldId) -> bool) {
        if !self.promises.keeps_data {
            return;
        }
        let believed: Vec<(HoldId, Arc<Lease>)> = self.with(|state| {
            let holds = state.holds.iter().enumerate();
            let meant = holds.filter(|(id, hold)| hold.state != HoldState::Ended && is_meant(*id));
            let meant = meant.filter(|(_, hold)| !hold.is_local && !hold.is_taken_away());
            let believed = meant.filter(|(_, hold)| hold.believes());
            believed
                .map(|(id, hold)| (id, Arc::clone(&hold.lease)))
                .collect()
        });
        let missing = self.network.with(|state, now| {
            let mut believed = believed.iter();
            believed.find(|(_, lease)| !is_quorum(&stored_on(state, lease, now)))
        });
        if let Some((hold, _)) = missing {
            self.report_hold("held lock is not stored on a quorum", *hold);
        }
    }

    /// Checks that a lock whose release has succeeded is gone from a quorum.
    pub(super) fn check_released(&self, hold: HoldId) {
        if self.with(|state| state.holds[hold].is_local) || !self.promises.kills_connections {
            return;
        }
        let lease = self.lease(hold);
        let (left, total) = self.network.with(|state, now| {
            let servers = state.servers.iter_mut();
            let left =
                servers.filter_map(|server| (server.stored_keys(&lease, now) > 0).then_some(()));
            (left.count(), state.servers.len())
        });
        if left > (total - 1) / 2 {
            self.report_hold("released lock is left on a quorum", hold);
        }
    }

    /// Records that an extension of a lock begins.
    pub(crate) fn extending(&self, hold: HoldId) {
        self.with(|state| state.holds[hold].stored_since = Some(Vec::new()));
        self.see_extensions();
    }

    /// Adds the servers that store a lock whose extension is in progress to those that have stored
    /// it since the extension began.
    pub(super) fn see_extensions(&self) {
        let extended: Vec<(HoldId, Arc<Lease>)> = self.with(|state| {
            let holds = state.holds.iter().enumerate();
            let extended = holds.filter(|(_, hold)| hold.stored_since.is_some());
            extended
                .map(|(id, hold)| (id, Arc::clone(&hold.lease)))
                .collect()
        });
        for (hold, lease) in extended {
            let stored = self
                .network
                .with(|state, now| stored_on(state, &lease, now));
            self.with(|state| {
                if let Some(since) = &mut state.holds[hold].stored_since {
                    add_stored(since, &stored);
                }
            });
        }
    }

    /// Checks the result of an extension: it may succeed only if each server of a quorum has stored
    /// the lock at some time since the extension began (S5). Until its result is known a server may
    /// grant late, and then lose its data, or the lock with its TTL during a suspend. After a
    /// refusal the lock is lost.
    pub(crate) fn extended(&self, hold: HoldId, result: &Result<(), Error>) {
        self.see_extensions();
        let stored = self.with(|state| state.holds[hold].stored_since.take());
        let stored = stored.unwrap_or_default();
        let (lease, now, is_local) = self.with(|state| {
            let hold = &state.holds[hold];
            (
                Arc::clone(&hold.lease),
                world::clock_of(hold.process),
                hold.is_local,
            )
        });
        self.count(match result {
            Ok(()) => "extensions",
            Err(Error::LockLost { .. }) => "extensions of lost locks",
            Err(_) => "failed extensions",
        });
        let is_held = matches!(lease.peek(now), LeaseState::Held(_));
        match result {
            Ok(()) if !is_local && !is_quorum(&stored) => {
                self.report_hold("extension of a lock that no quorum stores", hold);
            }
            Ok(()) => self.check_stored(|id| id == hold),
            Err(Error::LockLost { .. }) if is_held => {
                self.report_hold("refused extension leaves the lock held", hold);
            }
            Err(_) => {}
        }
        self.check_overlaps();
    }

    /// Lets another client hold its lock on all servers.
    pub(crate) fn give_strangers_lock(&self) {
        let key = world::exclusive_key(STRANGERS_LOCK);
        self.network.with(|state, now| {
            let servers = state.servers.iter_mut();
            servers.for_each(|server| server.give_to_stranger(&key, FOR_EVER, now));
        });
    }

    fn strangers_servers(&self) -> (usize, usize) {
        let key = world::exclusive_key(STRANGERS_LOCK);
        self.network.with(|state, now| {
            let servers = state.servers.iter_mut();
            let held = servers.filter_map(|server| server.is_strangers(&key, now).then_some(()));
            (held.count(), state.servers.len())
        })
    }

    /// Checks that no guard is returned for the lock that another client holds (S3).
    pub(super) fn check_strangers_lock(&self, hold: HoldId) {
        let is_wrong = self.with(|state| {
            let hold = &state.holds[hold];
            hold.is_of(STRANGERS_LOCK) && !hold.is_local
        });
        let (held, total) = self.strangers_servers();
        if is_wrong && held > (total - 1) / 2 {
            self.report_hold("lock of another client is acquired", hold);
        }
    }

    /// Checks that the lock of another client is as it was (S3).
    pub(crate) fn check_strangers_value(&self) {
        let (held, total) = self.strangers_servers();
        if self.promises.keeps_data && held < total {
            self.report(format!(
                "foreign value is left on {held} of {total} servers"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_needs_servers_that_have_stored_the_lock_since_it_began() {
        let (before, between, after) = ([false, true, false], [false, true, true], [false; 3]);
        let seen = |moments: &[[bool; 3]]| {
            let mut since = Vec::new();
            moments
                .iter()
                .for_each(|stored| add_stored(&mut since, stored));
            is_quorum(&since)
        };
        // Seed 1800602970: a late grant is confirmed, and gone before the result.
        assert!(seen(&[before, between, after]));
        assert!(seen(&[before, [false, false, true], after]));
        assert!(!seen(&[before, before, after]));
        assert!(!seen(&[after, after]));
    }
}
