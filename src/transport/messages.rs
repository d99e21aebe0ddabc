//! What goes through a worker's queue, and what it reports while connecting.

use std::sync::Arc;
use std::time::Duration;

use crate::error::NodeFailure;
use crate::telemetry::observer::Observer;
use crate::transport::job::Job;
use crate::transport::node::traits::Connector;

/// What a lane's thread takes from its queue.
pub(crate) enum WorkerMessage {
    Job(Job),
    /// Many at once, so that they are not taken one by one by a thread that is quicker than who sends.
    Jobs(Vec<Job>),
    /// A caller has left something on the wire, and nobody looks for the answer.
    Poll,
    /// Connect for the first time. Sent when all threads have been built.
    Start,
    /// End when everything before this has been served.
    Stop,
}

/// What became of a job that a caller wanted to begin himself.
pub(crate) enum Submitted {
    /// It is in the lane's queue.
    Queued,
    /// It is on the wire. `wake` says that the lane's thread does not look for the answer unless it is woken.
    Sent { wake_worker: bool },
}

/// What became of a lane's connect, told until it is up for the first time.
#[derive(Debug)]
pub(crate) enum ConnectEvent {
    Up,
    /// It tries again.
    Failed(NodeFailure),
    /// It is the same server as another node of the configuration.
    Duplicate(usize),
}

/// One node, as the crew needs to know it.
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) node_timeout: Duration,
    /// The longest TTL of a lock, where nodes that have just started are not to vote.
    pub(crate) restart_quarantine: Option<Duration>,
    /// Whether a node that may evict locks is not used.
    pub(crate) reject_evicting: bool,
    /// Whether it is a server's address, and no system of servers.
    pub(crate) is_one_server: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}
