//! The messages to a worker, and its reports while it connects for the first time.
//!
//! Tests: `src/tests/transport/worker.rs`, `connection.rs`.

use std::sync::Arc;
use std::time::Duration;

use crate::error::node_failure::NodeFailure;
use crate::telemetry::observer::Observer;
use crate::transport::job::Job;
use crate::transport::node::traits::Connector;

/// A message in a worker's queue.
pub(crate) enum WorkerMessage {
    Job(Job),
    /// Many jobs in one message, so that the worker receives them in one batch.
    Jobs(Vec<Job>),
    /// A caller has left requests in flight, and no caller polls for their replies.
    Poll,
    /// Connect for the first time. Sent when all workers have been built.
    Start,
    /// End when everything queued before this message has been served.
    Stop,
}

/// The result of submitting a job to a connection.
pub(crate) enum Submitted {
    /// The job is in the worker's queue.
    Queued,
    /// The caller has sent the request itself. `wake_worker` is set if the worker sleeps, and polls
    /// for the reply only after it is woken.
    Sent { wake_worker: bool },
}

/// The result of a connect, reported until the connection is up for the first time.
#[derive(Debug)]
pub(crate) enum ConnectEvent {
    Up,
    /// The connect failed. The worker tries again.
    Failed(NodeFailure),
    /// The configured node with this index has the same server.
    Duplicate(usize),
}

/// [`NodeConfig::ping_interval`] outside of tests.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The configuration of one node, as its workers need it.
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) node_timeout: Duration,
    /// How long a connection is idle before its worker sends a PING.
    pub(crate) ping_interval: Duration,
    /// The longest TTL of a lock, if restarted nodes are quarantined for it; `None` if they are
    /// not.
    pub(crate) restart_quarantine: Option<Duration>,
    /// Whether a node that may evict locks is rejected.
    pub(crate) reject_evicting: bool,
    /// Whether the address names one server, not sentinels or a cluster.
    pub(crate) is_one_server: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}
