//! What is left when all threads of a history have ended.

use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::{Hold, HoldState, short};
use crate::tests::simulation::network::network::NetworkState;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::draw_faults::FORCED_LOCK;
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
    pub(crate) fn check_leftovers(&self, has_settled: impl Fn(usize) -> bool) {
        if !self.promises.leaves_nothing {
            return;
        }
        let tokens = self.network.with(tokens);
        let holds = self.with(|state| state.holds.clone());
        let is_used = |hold: &Hold, token: &str| {
            let is_open = hold.state != HoldState::Ended;
            is_open && hold.lease.token().text() == token
        };
        let left = tokens.into_iter().find(|left| {
            let of = left.token.strip_prefix('p');
            let of = of.and_then(|rest| rest.split(':').next()?.parse().ok());
            of.is_some_and(&has_settled)
                && !holds.iter().any(|hold| is_used(hold, &left.token))
                && !left.key.contains(&*lock_name(FORCED_LOCK))
        });
        if let Some(left) = left {
            let (server, key, token) = (left.server, left.key, short(&left.token));
            self.report(format!("leftover on server {server}: {key} {token}"));
        }
    }

    /// Checks that each loss was told once to those that asked for it (S11).
    pub(crate) fn check_told(&self, is_alive: impl Fn(usize) -> bool) {
        let untold = self.with(|state| {
            let untold = state.holds.iter().find(|hold| {
                let now = world::clock_of(hold.process);
                let is_lost = hold.lease.loss_reason(now).is_some();
                is_alive(hold.process) && is_lost && !hold.is_local && hold.told == Some(0)
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
