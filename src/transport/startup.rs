//! Waits for a quorum at connect.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::protocol::quorum::{Tally, Vote, VoteRule, majority};
use crate::time::{clock, deadline};
use crate::transport::messages::ConnectEvent;

/// Nodes that are not needed for a quorum get at least this much longer than the quorum did.
const MIN_STARTUP_GRACE: Duration = Duration::from_millis(10);

/// Waits until a quorum is up, and then for those of whom nothing has been heard, for a while. Answers what became of the nodes
/// if there is no quorum.
pub(crate) fn wait_for_quorum(
    first: &Receiver<(usize, ConnectEvent)>,
    settings: &Settings,
    names: &[String],
    start: Instant,
) -> Result<Option<Tally>, Error> {
    let total = names.len();
    let mut lanes_up = vec![0; total];
    let mut causes: Vec<Option<NodeFailure>> = vec![None; total];
    let mut end = deadline::deadline(start, settings.connect_timeout);
    let is_up = |lanes: &usize| *lanes == settings.pool_size;
    loop {
        let up = lanes_up.iter().filter(|lanes| is_up(lanes)).count();
        let heard_of = |node: &usize| is_up(&lanes_up[*node]) || causes[*node].is_some();
        if up >= majority(total) && (0..total).all(|node| heard_of(&node)) {
            return Ok(None);
        }
        let outcome = match end {
            Some(end) => first.recv_deadline(end).ok(),
            None => first.recv().ok(),
        };
        match outcome {
            None if up >= majority(total) => return Ok(None),
            None => break,
            Some((node, ConnectEvent::Duplicate(twin))) => {
                return Err(Error::InvalidConfig(format!(
                    "{} and {} are the same server",
                    names[twin], names[node]
                )));
            }
            Some((node, ConnectEvent::Failed(cause))) => {
                causes[node] = Some(cause);
            }
            Some((node, ConnectEvent::Up)) => {
                lanes_up[node] += 1;
                if up + 1 == majority(total) && is_up(&lanes_up[node]) {
                    let now = clock::now();
                    let grace = now.saturating_duration_since(start).max(MIN_STARTUP_GRACE);
                    end = deadline::earlier(end, deadline::deadline(now, grace));
                }
            }
        }
    }
    let mut tally = Tally::new(total, VoteRule::Acquire);
    for (node, cause) in causes.into_iter().enumerate() {
        tally.vote(
            node,
            match cause {
                _ if is_up(&lanes_up[node]) => Vote::Granted,
                Some(cause) => Vote::Fault(cause),
                None => Vote::Fault(NodeFailure::TimedOut),
            },
        );
    }
    Ok(Some(tally))
}
