//! The threads of all lanes together: building, starting and ending them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use crate::error::Error;
use crate::sync::threads::spawn;
use crate::transport::connection::Lane;
use crate::transport::messages::{First, Post};
use crate::transport::registry::Census;
use crate::transport::worker::Worker;

/// The threads of all lanes, and what it takes to end them.
#[derive(Debug)]
pub(crate) struct Crew {
    lanes: Vec<Lane>,
    census: Arc<Census>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Disconnected when the last thread has ended.
    ended: Receiver<()>,
}

impl Crew {
    /// Builds `pool` threads for each node and starts them when all are there. What becomes of their connects
    /// comes through the channel, with the node's number.
    ///
    /// # Errors
    /// `System` when a thread cannot be had; those that were built end.
    pub(crate) fn build(
        posts: &[Post],
        pool: usize,
    ) -> Result<(Crew, Receiver<(usize, First)>), Error> {
        let (alive, ended) = crossbeam_channel::bounded(0);
        let (tell, first) = crossbeam_channel::unbounded();
        let census = Arc::new(Census::of(posts.len()));
        let mut lanes = Vec::new();
        let mut threads = Vec::new();
        for (node, post) in posts.iter().enumerate() {
            for number in 0..pool {
                let (lane, queue, desk) = Lane::new(node, post, &census);
                lanes.push(lane);
                let worker = Worker::new(node, post, queue, desk, tell.clone(), alive.clone());
                threads.push(spawn(format!("redguard-{node}.{number}"), move || {
                    worker.run();
                })?);
            }
        }
        lanes.iter().for_each(|lane| lane.start());
        let threads = Mutex::new(threads);
        let crew = Crew {
            lanes,
            census,
            threads,
            ended,
        };
        Ok((crew, first))
    }

    /// All lanes, those of one node next to each other.
    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Tells of lanes that come up.
    pub(crate) fn census(&self) -> &Census {
        &self.census
    }

    /// Lets every lane serve what is queued and end, and waits for that until `end`. `false` if some did not.
    pub(crate) fn disband(&self, end: Instant) -> bool {
        self.lanes.iter().for_each(|lane| lane.stop());
        let ended = matches!(
            self.ended.recv_deadline(end),
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
