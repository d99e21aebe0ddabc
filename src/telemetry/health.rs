//! How the nodes are, as their lanes see them: what [`Nodes::health`](crate::Nodes::health) tells.

use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::breaker::Phase;
use crate::protocol::server_info::{ClockOffset, Role};
use crate::time::clock;

/// How the nodes are at this moment, and whether they are asked.
///
/// ```no_run
/// use redguard::{BreakerState, NodeState, Nodes};
///
/// /// One line for a status page.
/// fn status(nodes: &Nodes) -> String {
///     let health = nodes.health();
///     let breaker = match health.breaker {
///         BreakerState::Closed => "asked".to_owned(),
///         BreakerState::Open { retry_in } => format!("not asked for {retry_in:.0?}"),
///         _ => "tried out".to_owned(),
///     };
///     let down = health.nodes.iter().filter(|node| node.state != NodeState::Up);
///     let down: Vec<&str> = down.map(|node| node.node.as_str()).collect();
///     format!("nodes are {breaker}; not up: {down:?}")
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The breaker, which all locks on these nodes share.
    pub breaker: BreakerState,
    /// In the order of the configuration.
    pub nodes: Box<[NodeHealth]>,
}

/// Whether acquires ask the nodes ([`Config::circuit_breaker`](crate::Config::circuit_breaker)).
///
/// ```
/// use redguard::BreakerState;
///
/// /// For a gauge: 1 while acquires fail at once.
/// fn gauge(breaker: BreakerState) -> i64 {
///     i64::from(matches!(breaker, BreakerState::Open { .. }))
/// }
///
/// assert_eq!(gauge(BreakerState::Closed), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// They do.
    Closed,
    /// They do not: no quorum has answered for some rounds.
    Open {
        /// When they do again at the latest.
        retry_in: Duration,
    },
    /// The next one does, or does at this moment; all others wait for what it finds.
    HalfOpen,
}

/// How one node is.
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
    /// Its address, without credentials.
    pub node: String,
    /// Whether it takes part.
    pub state: NodeState,
    /// Since when it is up (a quarantine counts as such), or not.
    pub since: Instant,
    /// Why it is not up, or in quarantine.
    pub cause: Option<NodeFailure>,
    /// What it said when it was connected to last; `None` if it never was.
    pub role: Option<Role>,
    /// Its `maxmemory-policy`, likewise.
    pub eviction_policy: Option<String>,
    /// Its clock beside ours, likewise.
    pub clock_offset: Option<ClockOffset>,
    /// By how much that may be wrong: half of the round trip in which it was measured.
    pub clock_uncertainty: Option<Duration>,
}

/// Whether a node takes part.
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
    /// All its connections stand, and it answers in time.
    Up,
    /// It is not connected, or overdue with an answer. It is not asked, and connected to in the background.
    Suspect,
    /// It is up, but does not vote on new locks yet
    /// ([`Config::restart_quarantine`](crate::Config::restart_quarantine)).
    Quarantined,
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
