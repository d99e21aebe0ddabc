//! What is measured: on how many nodes, how they are, with how many threads, and who can do it.

use std::time::Duration;

use crate::peers::Peer;

/// How the last node is while locks are timed. All are well while the threads connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Healthy,
    /// It accepts connections, but does not answer.
    Stopped,
    /// It is gone, and refuses connections.
    Down,
}

/// The same for all peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) nodes: usize,
    pub(crate) threads: usize,
    /// All threads want one key, not each its own.
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

    /// Whether the goals for peers speak of it.
    pub(crate) fn is_large(self) -> bool {
        self.nodes >= 3 || self.threads >= 16
    }

    /// Who wants the same key waits for longer than a lock takes, and a node that is out for its time-outs.
    pub(crate) fn time(self, time: Duration) -> Duration {
        match (self.one_key, self.health) {
            (true, _) => time * 3,
            (false, Health::Healthy) => time,
            (false, _) => time * 2,
        }
    }

    pub(crate) fn peers(self) -> impl Iterator<Item = Peer> {
        Peer::ALL.into_iter().filter(move |peer| match peer {
            Peer::RedisLock => self.nodes == 1,
            // They have one key each, and need all nodes.
            Peer::Floor => !self.one_key && self.health == Health::Healthy,
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

/// A corner of each part is enough for a look whether it runs.
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
