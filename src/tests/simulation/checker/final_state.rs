//! Checks of the state after all threads of a history have ended.

use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::{Hold, short};
use crate::tests::simulation::network::network::NetworkState;
use crate::tests::simulation::network::server::{STRANGERS_TOKEN, lock_name};
use crate::tests::simulation::plan::locks::{FORCED_LOCK, STOLEN_LOCK};
use crate::tests::simulation::world;

/// A token that a server stores.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct LeftToken {
    server: usize,
    key: String,
    token: String,
}

impl Checker {
    /// Checks that no token is left of a process that has undone or released all it does not hold
    /// (S4). `has_settled` says whether that is expected of a process.
    ///
    /// Allowed: after an adoption a node that it did not reach keeps the former token until its TTL
    /// ends, because nobody may release a token that another process may hold again
    /// ([`Adopted`](crate::tests::simulation::checker::hold::HoldState::Adopted) is not ended). A
    /// lock that was deleted or overwritten by others is left to its TTL, too.
    pub(crate) fn check_leftovers(&self, has_settled: impl Fn(usize) -> bool) {
        if !self.promises.leaves_nothing {
            return;
        }
        let tokens = self.network.with(tokens);
        let holds = self.with(|state| state.holds.clone());
        let is_used =
            |hold: &Hold, token: &str| hold.is_open() && hold.lease.token().text() == token;
        let left = tokens.into_iter().find(|left| {
            let of = left.token.strip_prefix('p');
            let of = of.and_then(|rest| rest.split(':').next()?.parse().ok());
            of.is_some_and(&has_settled)
                && !holds.iter().any(|hold| is_used(hold, &left.token))
                && ![FORCED_LOCK, STOLEN_LOCK]
                    .iter()
                    .any(|lock| left.key.contains(&*lock_name(*lock)))
        });
        if let Some(left) = left {
            let (server, key, token) = (left.server, left.key, short(&left.token));
            self.report(format!("leftover on server {server}: {key} {token}"));
        }
    }

    /// Checks that nothing but the other client's lock is stored, because each TTL has ended.
    pub(crate) fn check_empty(&self) {
        let left = self.network.with(tokens).into_iter();
        let mut left = left.filter(|left| left.token != STRANGERS_TOKEN);
        if let Some(left) = left.next() {
            let (server, key, token) = (left.server, left.key, short(&left.token));
            self.report(format!(
                "kept beyond its TTL on server {server}: {key} {token}"
            ));
        }
    }

    /// Checks that the processes have closed all their connections.
    pub(crate) fn check_connections(&self, is_alive: impl Fn(usize) -> bool) {
        let open = self.network.with(|state, _| state.open_connections());
        if let Some((process, server)) = open.into_iter().find(|(process, _)| is_alive(*process)) {
            self.report(format!(
                "process {process} has left a connection to server {server} open"
            ));
        }
    }

    /// Checks that each loss was told to the holders that asked for it (S11).
    pub(crate) fn check_told(&self, is_alive: impl Fn(usize) -> bool) {
        let untold = self.with(|state| {
            let untold = state.holds.iter().find(|hold| {
                let now = world::clock_of(hold.process);
                let is_lost = hold.lease.loss_reason(now).is_some();
                let lacks_loss = hold
                    .reports
                    .as_ref()
                    .is_some_and(|reports| reports.lacks_loss());
                is_alive(hold.process) && is_lost && !hold.is_local && lacks_loss
            });
            untold.map(|hold| hold.describe())
        });
        if let Some(untold) = untold {
            self.report(format!("loss was never told: {untold}"));
        }
    }
}

/// Returns all tokens that the servers store.
fn tokens(state: &mut NetworkState, now: std::time::Instant) -> Vec<LeftToken> {
    let mut left = Vec::new();
    for server in &mut state.servers {
        let (number, shown) = (server.number, server.clock.at(now));
        for (key, lock) in server.store.locks(shown) {
            let owner = lock.owner.iter().map(|(token, _)| token);
            let permits = lock.permits.values().map(|(token, _)| token);
            let tokens = owner
                .chain(lock.readers.keys())
                .chain(lock.gate.keys())
                .chain(permits);
            left.extend(tokens.map(|token| LeftToken {
                server: number,
                key: format!("{key:?}"),
                token: token.clone(),
            }));
        }
    }
    left.sort(); // a hash map has no order that repeats
    left
}
