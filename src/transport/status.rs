//! The state of a node connection that callers read without waiting for its worker.
//!
//! | state | fields | leaves by |
//! |---|---|---|
//! | down | `up` false | a handshake → up |
//! | up | `up`, `overdue_at` ahead or unset | a late reply → overdue; a timeout → down |
//! | overdue | `up`, `overdue_at` passed | the reply → up; a failed reconnect → down |
//! | quarantined | up, `quarantined_until` ahead | the time passes → up |
//! | replaced | up, epoch below the node's | a reconnect → up |
//!
//! The [`registry`](crate::transport::registry) has the node's epoch. A connection that breaks
//! without a timeout stays `up` for one reconnect, which counts as an outstanding reply.
//!
//! A connection is down if it was never up yet, or if a connect or a reply failed. "Suspect" is the
//! public word for down and overdue. Only the worker, and callers that have locked the pipeline,
//! write these fields.
//!
//! Tests: `src/tests/transport/connection.rs`, `worker.rs`; `src/tests/engine/quorum.rs`.

use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::server_info::ServerInfo;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::primitives::Mutex;
use crate::telemetry::stats::NodeCounters;
use crate::time::clock;

/// The state of a node connection, readable without blocking.
#[derive(Debug)]
pub(crate) struct ConnectionStatus {
    /// Whether the handshake has succeeded and the connection has not failed since.
    pub(crate) up: AtomicBool,
    /// When the oldest outstanding reply is overdue, by [`clock::to_micros`]; `u64::MAX` without
    /// one.
    pub(crate) overdue_at: AtomicU64,
    /// Until when the node does not vote on new locks, by [`clock::to_micros`].
    pub(crate) quarantined_until: AtomicU64,
    /// The number of messages that the worker has not received from its queue yet.
    pub(crate) queue_len: AtomicU64,
    /// The number of pending releases.
    pub(crate) pending: AtomicUsize,
    /// Counters of the node's replies.
    pub(crate) counters: NodeCounters,
    pub(crate) report: Mutex<StatusReport>,
}

/// The details of a connection's state, for health reports and errors.
#[derive(Clone, Debug)]
pub(crate) struct StatusReport {
    /// Why the connection is not up, or was not when it was down last.
    pub(crate) cause: NodeFailure,
    /// When the connection came up or went down.
    pub(crate) since: Instant,
    /// The duration of a round trip in the last connect; `None` if that failed.
    pub(crate) connecting: Option<Duration>,
    /// The server info of the last handshake.
    pub(crate) server_info: Option<ServerInfo>,
}

impl ConnectionStatus {
    /// Returns the state of a connection that has never been up.
    pub(crate) fn new() -> ConnectionStatus {
        ConnectionStatus {
            up: AtomicBool::new(false),
            overdue_at: AtomicU64::new(u64::MAX),
            quarantined_until: AtomicU64::new(0),
            queue_len: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            counters: NodeCounters::default(),
            report: Mutex::new(StatusReport {
                cause: NodeFailure::Unreachable("not connected yet".into()),
                since: clock::now(),
                connecting: None,
                server_info: None,
            }),
        }
    }

    /// Returns whether a reply or a reconnect is overdue.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        // Most connections owe no reply, and then the time does not matter.
        let overdue_at = self.overdue_at.load(Ordering::Acquire);
        overdue_at != u64::MAX && clock::to_micros(now) > overdue_at
    }

    /// Returns how long the node will not vote on new locks; zero if it votes.
    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        match self.quarantined_until.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            until => Duration::from_micros(until.saturating_sub(clock::to_micros(now))),
        }
    }
}
