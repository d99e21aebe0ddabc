//! The wait for a quorum in `Nodes::connect`.
//!
//! It reads the workers' connect events and blocks until `connect_timeout` at most. It ends no
//! worker: a node that is not connected by then stays configured (S1).
//!
//! Tests: `src/tests/engine/outage.rs`; `tests/it/nodes/connecting.rs`.

use std::time::{Duration, Instant};

use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::quorum::{Tally, Vote, VoteRule, majority};
use crate::sync::channel::Receiver;
use crate::time::{clock, deadline};
use crate::transport::messages::ConnectEvent;

/// The least additional time, after the quorum is up, for the nodes beyond the quorum.
const MIN_STARTUP_GRACE: Duration = Duration::from_millis(10);

/// The connects reported so far.
struct Startup {
    /// The number of connections that are up, by node.
    connections_up: Vec<usize>,
    /// The last failure, by node.
    causes: Vec<Option<NodeFailure>>,
    pool_size: usize,
}

impl Startup {
    fn is_up(&self, node: usize) -> bool {
        self.connections_up[node] == self.pool_size
    }

    fn nodes_up(&self) -> usize {
        let nodes = 0..self.connections_up.len();
        nodes.filter(|node| self.is_up(*node)).count()
    }

    fn all_reported(&self) -> bool {
        let mut nodes = 0..self.connections_up.len();
        nodes.all(|node| self.is_up(node) || self.causes[node].is_some())
    }

    /// Returns the nodes that are up as granted, and the others with the cause of their failure.
    fn into_tally(self) -> Tally {
        let total = self.connections_up.len();
        let mut tally = Tally::new(total, VoteRule::Acquire);
        for node in 0..total {
            let vote = match &self.causes[node] {
                _ if self.is_up(node) => Vote::Granted,
                Some(cause) => Vote::Fault(cause.clone()),
                None => Vote::Fault(NodeFailure::TimedOut),
            };
            tally.vote(node, vote);
        }
        tally
    }
}

/// Blocks until a quorum is up, and then a while for the nodes that have not reported yet.
///
/// Returns `None` if a quorum is up, else a tally with the cause of each failure. That is so after
/// `connect_timeout` from `start`.
///
/// # Errors
/// - `InvalidConfig` if two nodes are the same server.
pub(crate) fn wait_for_quorum(
    connect_events: &Receiver<(usize, ConnectEvent)>,
    settings: &Settings,
    names: &[String],
    start: Instant,
) -> Result<Option<Tally>, Error> {
    let total = names.len();
    let mut startup = Startup {
        connections_up: vec![0; total],
        causes: vec![None; total],
        pool_size: settings.pool_size,
    };
    let mut end = deadline::deadline(start, settings.connect_timeout);
    loop {
        let nodes_up = startup.nodes_up();
        if nodes_up >= majority(total) && startup.all_reported() {
            return Ok(None);
        }
        let event = match end {
            Some(end) => connect_events.recv_deadline(end).ok(),
            None => connect_events.recv().ok(),
        };
        match event {
            None if nodes_up >= majority(total) => return Ok(None),
            None => return Ok(Some(startup.into_tally())),
            Some((node, ConnectEvent::Duplicate(twin))) => {
                return Err(Error::InvalidConfig(format!(
                    "{} and {} are the same server",
                    names[twin], names[node]
                )));
            }
            Some((node, ConnectEvent::Failed(cause))) => startup.causes[node] = Some(cause),
            Some((node, ConnectEvent::Up)) => {
                startup.connections_up[node] += 1;
                if nodes_up + 1 == majority(total) && startup.is_up(node) {
                    // The other nodes get as much time again as the quorum took.
                    let now = clock::now();
                    let grace = now.saturating_duration_since(start).max(MIN_STARTUP_GRACE);
                    end = deadline::earlier(end, deadline::deadline(now, grace));
                }
            }
        }
    }
}
