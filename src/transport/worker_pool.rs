//! The threads of all lanes together: building, starting and ending them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use crate::error::Error;
use crate::sync::threads::spawn;
use crate::transport::connection::NodeConnection;
use crate::transport::messages::{ConnectEvent, NodeConfig};
use crate::transport::registry::NodeRegistry;
use crate::transport::worker::Worker;

/// The threads of all lanes, and what it takes to end them.
#[derive(Debug)]
pub(crate) struct WorkerPool {
    connections: Vec<NodeConnection>,
    registry: Arc<NodeRegistry>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnected when the last thread has ended.
    exited: Receiver<()>,
}

impl WorkerPool {
    /// Builds `pool` threads for each node and starts them when all are there. What becomes of their connects
    /// comes through the channel, with the node's number.
    ///
    /// # Errors
    /// `System` when a thread cannot be had; those that were built end.
    pub(crate) fn spawn(
        posts: &[NodeConfig],
        pool: usize,
    ) -> Result<(WorkerPool, Receiver<(usize, ConnectEvent)>), Error> {
        let (alive, ended) = crossbeam_channel::bounded(0);
        let (tell, first) = crossbeam_channel::unbounded();
        let census = Arc::new(NodeRegistry::of(posts.len()));
        let mut lanes = Vec::new();
        let mut threads = Vec::new();
        for (node, post) in posts.iter().enumerate() {
            for number in 0..pool {
                let (lane, queue, desk) = NodeConnection::new(node, post, &census);
                lanes.push(lane);
                let worker = Worker::new(node, post, queue, desk, tell.clone(), alive.clone());
                threads.push(spawn(format!("redguard-{node}.{number}"), move || {
                    worker.run();
                })?);
            }
        }
        lanes.iter().for_each(|lane| lane.start());
        let threads = Mutex::new(threads);
        let crew = WorkerPool {
            connections: lanes,
            registry: census,
            threads,
            exited: ended,
        };
        Ok((crew, first))
    }

    /// All lanes, those of one node next to each other.
    pub(crate) fn connections(&self) -> &[NodeConnection] {
        &self.connections
    }

    /// Tells of lanes that come up.
    pub(crate) fn registry(&self) -> &NodeRegistry {
        &self.registry
    }

    /// Lets every lane serve what is queued and end, and waits for that until `end`. `false` if some did not.
    pub(crate) fn shutdown(&self, end: Instant) -> bool {
        self.connections.iter().for_each(|lane| lane.stop());
        let ended = matches!(
            self.exited.recv_deadline(end),
            Err(RecvTimeoutError::Disconnected)
        );
        let threads = std::mem::take(&mut *self.threads.lock());
        if ended {
            for thread in threads {
                // A lane catches what panics in it, so this has nothing to tell.
                let _ = thread.join();
            }
        }
        ended
    }
}
