//! What is known of a node without waiting for it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::NodeFailure;
use crate::protocol::server_info::ServerInfo;
use crate::telemetry::stats::NodeCounters;
use crate::time::clock;

/// What the lane's thread tells its callers, readable without waiting for it.
#[derive(Debug)]
pub(crate) struct ConnectionStatus {
    /// Whether the handshake's replies have been read and nothing has gone wrong since.
    pub(crate) up: AtomicBool,
    /// When the batch on the wire is overdue, in [`time::micros`]; `u64::MAX` when there is none.
    pub(crate) overdue_at: AtomicU64,
    /// Until when the node does not vote on new locks, in [`time::micros`].
    pub(crate) quarantined_until: AtomicU64,
    /// How many messages the lane's thread has not taken out of its queue yet, or not seen to.
    pub(crate) queue_len: AtomicU64,
    /// How many releases wait for the node, or for their next try there.
    pub(crate) pending: AtomicUsize,
    /// What has come back from it.
    pub(crate) counters: NodeCounters,
    pub(crate) report: Mutex<StatusReport>,
}

/// What there is to tell of a lane to those who ask how it is.
#[derive(Clone, Debug)]
pub(crate) struct StatusReport {
    /// Why the lane is not up, or was not when it was down last.
    pub(crate) cause: NodeFailure,
    /// Since when it is up, or not up.
    pub(crate) since: Instant,
    /// How long a round trip took in the last connect; `None` if it failed.
    pub(crate) connecting: Option<Duration>,
    /// What the node said of itself when it was greeted last.
    pub(crate) server_info: Option<ServerInfo>,
}

impl ConnectionStatus {
    /// Of a node that is not connected yet.
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

    /// For how long the node does not vote yet on new locks; zero if it does.
    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        let left = self.quarantined_until.load(Ordering::Acquire);
        Duration::from_micros(left.saturating_sub(clock::to_micros(now)))
    }
}
