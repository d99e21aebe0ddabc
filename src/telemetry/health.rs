//! Plain data of [`Nodes::health`](crate::Nodes::health). Transport and engine fill it in; nothing
//! here reads a connection.

use std::fmt;
use std::time::{Duration, Instant};

use crate::error::duration_text;
use crate::error::node_failure::NodeFailure;
use crate::protocol::breaker::Phase;
use crate::protocol::server_info::{ClockOffset, Role};
use crate::time::clock;

/// A snapshot of the circuit breaker and of all nodes.
///
/// ```no_run
/// use redguard::{BreakerState, NodeState, Nodes};
///
/// /// Formats one line for a status page.
/// fn status(nodes: &Nodes) -> String {
///     let health = nodes.health();
///     let breaker = match health.breaker {
///         BreakerState::Closed => "closed".to_owned(),
///         BreakerState::Open { retry_in } => format!("open for {retry_in:.0?}"),
///         _ => "half-open".to_owned(),
///     };
///     let down = health.nodes.iter().filter(|node| node.state != NodeState::Up);
///     let down: Vec<&str> = down.map(|node| node.node.as_str()).collect();
///     format!("breaker {breaker}; not up: {down:?}")
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The circuit breaker, which all locks on these nodes share.
    pub breaker: BreakerState,
    /// The nodes, in the order of the configuration.
    pub nodes: Box<[NodeHealth]>,
}

/// The state of the circuit breaker
/// ([`Config::circuit_breaker`](crate::Config::circuit_breaker)).
///
/// ```
/// use redguard::BreakerState;
///
/// /// The value of a gauge: 1 while the breaker is open.
/// fn gauge(breaker: BreakerState) -> i64 {
///     i64::from(matches!(breaker, BreakerState::Open { .. }))
/// }
///
/// assert_eq!(gauge(BreakerState::Closed), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Acquires ask the nodes.
    Closed,
    /// Acquires do not ask the nodes, because no quorum replied in several rounds in a row.
    Open {
        /// The longest time until an acquire probes the nodes again.
        retry_in: Duration,
    },
    /// One acquire probes the nodes, or the next one will. All others wait for its result.
    HalfOpen,
}

/// The state of one node.
///
/// ```
/// use redguard::{NodeHealth, NodeState};
///
/// fn line(node: &NodeHealth) -> String {
///     let since = node.since.elapsed();
///     match (&node.state, &node.cause) {
///         (NodeState::Up, _) => format!("{} up for {since:.0?}", node.node),
///         (state, Some(cause)) => format!("{} {state:?} for {since:.0?}: {cause}", node.node),
///         (state, None) => format!("{} {state:?} for {since:.0?}", node.node),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeHealth {
    /// The node's address, without credentials.
    pub node: String,
    /// Whether the node takes part.
    pub state: NodeState,
    /// Since when the node is up, down or overdue. A quarantine counts as up.
    pub since: Instant,
    /// Why `state` is not [`Up`](NodeState::Up); `None` if it is.
    pub cause: Option<NodeFailure>,
    /// The role that the server reported at the last connect; `None` if it never connected.
    pub role: Option<Role>,
    /// The server's `maxmemory-policy` at the last connect.
    pub eviction_policy: Option<String>,
    /// The offset of the server's clock to ours, measured at the last connect.
    pub clock_offset: Option<ClockOffset>,
    /// The uncertainty of `clock_offset`: half of the round trip in which it was measured.
    pub clock_uncertainty: Option<Duration>,
}

/// Whether a node takes part in locks.
///
/// ```
/// use redguard::{Health, NodeState};
///
/// fn up(health: &Health) -> usize {
///     health.nodes.iter().filter(|node| node.state == NodeState::Up).count()
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeState {
    /// All connections to the node are up, and no reply is overdue.
    Up,
    /// A connection is down or a reply is overdue. Acquires fail on this node at once, while the
    /// library reconnects in the background.
    Suspect,
    /// The node is up, but does not vote on new locks yet
    /// ([`Config::restart_quarantine`](crate::Config::restart_quarantine)).
    Quarantined,
}

/// One line for the breaker and one for each node.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "circuit breaker {}", self.breaker)?;
        self.nodes.iter().try_for_each(|node| write!(f, "\n{node}"))
    }
}

/// As "open, next attempt in 12 s at the latest".
impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BreakerState::Closed => f.write_str("closed"),
            BreakerState::Open { retry_in } => {
                let retry_in = duration_text::format_wait(*retry_in);
                write!(f, "open, next attempt in {retry_in} at the latest")
            }
            BreakerState::HalfOpen => f.write_str("half-open"),
        }
    }
}

/// As "10.0.0.1:6379: suspect for 3.2 s: no answer in time".
impl fmt::Display for NodeHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = duration_text::format_wait(clock::now().saturating_duration_since(self.since));
        write!(f, "{}: {} for {since}", self.node, self.state)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
        }
        if let Some(role) = self.role.filter(|role| *role != Role::Master) {
            write!(f, "; {role}")?;
        }
        match self.clock_offset {
            Some(offset) => write!(f, "; clock {offset}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Quarantined => "quarantined",
        })
    }
}

impl BreakerState {
    pub(crate) fn of(phase: Phase) -> BreakerState {
        match phase {
            Phase::Closed => BreakerState::Closed,
            Phase::HalfOpen | Phase::Probing(_) => BreakerState::HalfOpen,
            Phase::Open { until, .. } => match until.saturating_duration_since(clock::now()) {
                Duration::ZERO => BreakerState::HalfOpen,
                retry_in => BreakerState::Open { retry_in },
            },
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn health_is_shown_as_lines_for_people() {
        let node = |name: &str, state, cause| NodeHealth {
            node: name.to_owned(),
            state,
            since: clock::now() + Duration::from_secs(1),
            cause,
            role: Some(Role::Master),
            eviction_policy: None,
            clock_offset: None,
            clock_uncertainty: None,
        };
        let replica = NodeHealth {
            role: Some(Role::Replica),
            clock_offset: Some(ClockOffset::Behind(Duration::from_millis(40))),
            ..node("c:3", NodeState::Quarantined, None)
        };
        let health = Health {
            breaker: BreakerState::Open {
                retry_in: Duration::from_secs(12),
            },
            nodes: Box::new([
                node("a:1", NodeState::Up, None),
                node("b:2", NodeState::Suspect, Some(NodeFailure::TimedOut)),
                replica,
            ]),
        };
        let expected = "circuit breaker open, next attempt in 12 s at the latest\n\
             a:1: up for 0 ms\n\
             b:2: suspect for 0 ms: no answer in time\n\
             c:3: quarantined for 0 ms; replica; clock 40 ms behind";
        assert_eq!(health.to_string(), expected);
        let others = [BreakerState::Closed, BreakerState::HalfOpen];
        assert_eq!(
            others.map(|state| state.to_string()),
            ["closed", "half-open"]
        );
    }
}
