//! The worker threads of all node connections: builds, starts and ends them.
//!
//! No worker starts before all have been built, so that a failure leaves no connection behind. A
//! shutdown never blocks beyond its deadline.
//!
//! Tests: `src/tests/engine/shutdown.rs`; `tests/it/nodes/connecting.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::error::error::Error;
use crate::sync::channel;
use crate::sync::channel::{Receiver, RecvTimeoutError, TryRecvError};
use crate::sync::primitives::Mutex;
use crate::sync::threads::{JoinHandle, spawn};
use crate::transport::connection::NodeConnection;
use crate::transport::messages::{ConnectEvent, NodeConfig};
use crate::transport::registry::NodeRegistry;
use crate::transport::worker::Worker;

/// All node connections with their worker threads.
#[derive(Debug)]
pub(crate) struct WorkerPool {
    connections: Vec<NodeConnection>,
    registry: Arc<NodeRegistry>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnected when the thread of the connection has ended.
    exited: Vec<Receiver<()>>,
}

impl WorkerPool {
    /// Builds `pool_size` workers for each node, and starts them when all have been built.
    ///
    /// The returned channel reports the connects, with the index of the node.
    ///
    /// # Errors
    /// - `System` if the operating system refuses a thread. The threads built before it end.
    pub(crate) fn spawn(
        nodes: &[NodeConfig],
        pool_size: usize,
    ) -> Result<(WorkerPool, Receiver<(usize, ConnectEvent)>), Error> {
        let (event_sender, connect_events) = channel::unbounded();
        let registry = Arc::new(NodeRegistry::of(nodes.len()));
        let mut connections = Vec::new();
        let (mut threads, mut exited) = (Vec::new(), Vec::new());
        for (node, config) in nodes.iter().enumerate() {
            for number in 0..pool_size {
                let (connection, end) = NodeConnection::new(node, config, &registry);
                connections.push(connection);
                let (alive, ended) = channel::unbounded();
                exited.push(ended);
                let worker = Worker::new(end, config, event_sender.clone(), alive);
                threads.push(spawn(thread_name(node, number), move || {
                    worker.run();
                })?);
            }
        }
        connections.iter().for_each(NodeConnection::start);
        let pool = WorkerPool {
            connections,
            registry,
            threads: Mutex::new(threads),
            exited,
        };
        Ok((pool, connect_events))
    }

    /// Returns the connections of all nodes, grouped by node.
    pub(crate) fn connections(&self) -> &[NodeConnection] {
        &self.connections
    }

    /// Returns the state that all workers share.
    pub(crate) fn registry(&self) -> &NodeRegistry {
        &self.registry
    }

    /// Ends all workers when they have served their queues, and blocks until then, at most until
    /// `end`. A worker that is connecting and has nothing to send is not waited for: a hung node
    /// would otherwise cost the caller `node_timeout`. Neither does a second call wait again.
    /// Returns the indices of the connections whose worker is waited for and still runs.
    pub(crate) fn shutdown(&self, end: Instant) -> Vec<usize> {
        let threads = std::mem::take(&mut *self.threads.lock()); // unlocked before joining
        let is_first = !threads.is_empty();
        let is_awaited = |connection: &NodeConnection| is_first && connection.has_duties();
        let awaited: Vec<bool> = self.connections.iter().map(is_awaited).collect();
        self.connections.iter().for_each(NodeConnection::stop);
        let mut left = Vec::new();
        for (index, (exited, is_awaited)) in self.exited.iter().zip(awaited).enumerate() {
            if is_awaited && exited.recv_deadline(end) != Err(RecvTimeoutError::Disconnected) {
                left.push(index);
            }
        }
        for (exited, thread) in self.exited.iter().zip(threads) {
            if exited.try_recv() == Err(TryRecvError::Disconnected) {
                // The worker has caught its panics, so the result says nothing.
                let _ = thread.join();
            }
        }
        left
    }
}

/// Returns the name of the thread that serves a connection of a node.
pub(crate) fn thread_name(node: usize, number: usize) -> String {
    format!("redguard-{node}.{number}")
}
