//! The settings: number and health of the nodes, number of threads, and the peers that support
//! them.

use std::time::Duration;

use crate::peers::Peer;

/// State of the last node during the measurement. All nodes are healthy while the threads connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Healthy,
    /// Accepts connections, but does not reply.
    Stopped,
    /// Refuses connections.
    Down,
}

/// A setting, the same for all peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) nodes: usize,
    pub(crate) threads: usize,
    /// All threads share one key instead of one key each.
    pub(crate) one_key: bool,
    pub(crate) health: Health,
}

impl Setting {
    pub(crate) fn name(self) -> String {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        format!(
            "{} node{}, {}, {}, {} thread{}",
            self.nodes,
            plural(self.nodes),
            self.health.name(),
            if self.one_key { "one key" } else { "own keys" },
            self.threads,
            plural(self.threads),
        )
    }

    /// Waits for a shared key exceed the time of a lock, and a node that is out costs its timeouts.
    pub(crate) fn time(self, time: Duration) -> Duration {
        match (self.one_key, self.health) {
            (true, _) => time * 3,
            (false, Health::Healthy) => time,
            (false, _) => time * 2,
        }
    }

    pub(crate) fn peers(self) -> impl Iterator<Item = Peer> {
        Peer::ALL.into_iter().filter(move |peer| match peer {
            Peer::RedisLock | Peer::Redisson => self.nodes == 1,
            // They use one key each, and need all nodes.
            Peer::Baseline => !self.one_key && self.health == Health::Healthy,
            _ => true,
        })
    }
}

impl Health {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Stopped => "one stopped",
            Health::Down => "one down",
        }
    }
}

const OWN_KEYS: ([usize; 3], [usize; 5]) = ([1, 3, 5], [1, 4, 16, 64, 256]);
const ONE_KEY: ([usize; 2], [usize; 4]) = ([1, 3], [4, 16, 64, 256]);
const OUTAGE: ([usize; 2], [usize; 2]) = ([3, 5], [1, 16]);

/// A few settings of each part suffice to show that it runs.
pub(crate) fn settings(short: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut part = |nodes: &[usize], threads: &[usize], one_key, health| {
        let some = |all: &[usize]| if short { 2.min(all.len()) } else { all.len() };
        for &nodes in &nodes[..some(nodes)] {
            for &threads in &threads[..some(threads)] {
                settings.push(Setting {
                    nodes,
                    threads,
                    one_key,
                    health,
                });
            }
        }
    };
    part(&OWN_KEYS.0, &OWN_KEYS.1, false, Health::Healthy);
    part(&ONE_KEY.0, &ONE_KEY.1, true, Health::Healthy);
    part(&OUTAGE.0, &OUTAGE.1, false, Health::Stopped);
    part(&OUTAGE.0, &OUTAGE.1, false, Health::Down);
    settings
}
