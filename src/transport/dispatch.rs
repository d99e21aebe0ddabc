//! Sends one request to the connections of one key, directly or through the queues of the workers.
//!
//! It never blocks, and it never resends: a request that a connection has accepted belongs to that
//! connection. A suspect node accepts only releases of leases that it was asked for before, so its
//! queue does not grow with its outage (L3).
//!
//! Tests: `src/tests/transport/connection.rs`; `src/tests/engine/quorum.rs`, `pending.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::error::node_failure::NodeFailure;
use crate::protocol::encode;
use crate::protocol::key::Key;
use crate::protocol::node_set::NodeSet;
use crate::protocol::request::{Op, Request};
use crate::transport::connection::NodeConnection;
use crate::transport::job::{Job, ReplyTo};
use crate::transport::messages::Submitted;

/// The connections that serve one key: always the same one of each node.
///
/// A lock of several keys uses the connections of its first key.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyConnections<'a> {
    /// The connections of all nodes, grouped by node.
    all: &'a [NodeConnection],
    pool_size: usize,
    index: usize,
}

/// How a request is sent.
#[derive(Clone, Copy)]
pub(super) struct SendMode<'a> {
    /// The destination of the replies; `None` if they are dropped.
    pub(super) reply: Option<&'a ReplyTo>,
    /// Whether the request is sent on the sockets of connections that are idle.
    pub(super) is_direct: bool,
    pub(super) now: Instant,
}

/// The result of a dispatch, by node.
#[derive(Debug, Default)]
pub(super) struct Dispatched {
    /// The nodes whose connection accepted the request.
    pub(super) accepted: NodeSet,
    /// The nodes to which this thread has sent the request itself.
    pub(super) direct: NodeSet,
    /// The nodes in `direct` whose worker sleeps and does not poll for the reply.
    pub(super) unattended: NodeSet,
    /// The suspect nodes, which were not asked.
    pub(super) failures: Vec<(usize, NodeFailure)>,
}

impl<'a> KeyConnections<'a> {
    pub(super) fn new(all: &'a [NodeConnection], pool_size: usize, key: &Key) -> Self {
        KeyConnections {
            all,
            pool_size,
            index: connection_index(key, pool_size),
        }
    }

    /// Returns the number of nodes.
    pub(super) fn total(&self) -> usize {
        self.all.len() / self.pool_size
    }

    /// Returns the connection of each node, with the node's index.
    pub(super) fn iter(
        &self,
    ) -> impl DoubleEndedIterator<Item = (usize, &'a NodeConnection)> + use<'a> {
        let connections = self.all.iter().skip(self.index);
        connections.step_by(self.pool_size).enumerate()
    }

    /// Sends `request` to `nodes`, through the queues of those connections on which it is not sent
    /// directly. Does not block.
    pub(super) fn dispatch(
        &self,
        request: &Request,
        nodes: NodeSet,
        mode: SendMode<'_>,
    ) -> Dispatched {
        encode::with_encoded(request, |bytes| {
            let mut dispatched = Dispatched::default();
            let mut request = request.clone();
            if !mode.is_direct {
                request.encoded = Some(Box::from(bytes)); // encoded once for all workers
            }
            let request = Arc::new(request);
            let mut connections = self.iter().filter(|(node, _)| nodes.contains(*node));
            // A release comes last to the node that all processes listen to, so that the woken one
            // does not overtake it on the others.
            let is_release = request.op == Op::Release;
            let direct = mode.is_direct.then_some(bytes);
            while let Some((node, connection)) = match is_release {
                true => connections.next_back(),
                false => connections.next(),
            } {
                let job = Job {
                    request: Arc::clone(&request),
                    reply: mode.reply.cloned(),
                };
                match connection.send(node, job, direct, mode.now) {
                    Ok(Submitted::Queued) => dispatched.accepted.insert(node),
                    Ok(Submitted::Sent { wake_worker }) => {
                        dispatched.accepted.insert(node);
                        dispatched.direct.insert(node);
                        if wake_worker {
                            dispatched.unattended.insert(node);
                        }
                    }
                    Err(cause) => dispatched.failures.push((node, cause)),
                }
            }
            dispatched
        })
    }
}

/// Returns which of the `pool_size` connections of a node serves a key.
pub(super) fn connection_index(key: &Key, pool_size: usize) -> usize {
    match pool_size {
        1 => 0,
        _ => (key.to_hash() % pool_size as u64) as usize,
    }
}
