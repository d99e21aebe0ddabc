//! The baseline *pipeline*: the least that a lock over shared connections can do.
//!
//! A thread per node drains a channel into one pipeline, and callers count the replies up to a
//! quorum. There is no lease, no undo, no random token, no timeout: a reply that never comes blocks
//! its caller for ever.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use redis::{Cmd, Connection, Script, Value};

use crate::Result;
use crate::baseline::{RELEASE, connect};
use crate::client::Client;

/// The largest number of requests in one pipeline.
const MAX_BATCH: usize = 256;

/// The connections that all clients share, one per node. They end with the last client.
struct Pipelines {
    nodes: Vec<Sender<Job>>,
}

/// A request, encoded, with the count of its replies.
struct Job {
    bytes: Arc<Vec<u8>>,
    votes: Arc<Votes>,
}

/// The replies to one request.
#[derive(Default)]
struct Votes {
    /// How many nodes granted, and how many did not.
    counts: Mutex<(usize, usize)>,
    changed: Condvar,
}

/// One thread's client.
pub(crate) struct Pipelined {
    pipelines: Arc<Pipelines>,
    key: String,
    token: String,
    sha: String,
    ttl: Duration,
}

impl Pipelined {
    /// Connects to the nodes, and returns a client per name.
    pub(crate) fn clients(
        urls: &[String],
        names: impl Iterator<Item = String>,
        ttl: Duration,
    ) -> Result<Vec<Box<dyn Client>>> {
        let mut nodes = Vec::new();
        for url in urls {
            let mut connection = connect(url)?;
            Script::new(RELEASE)
                .prepare_invoke()
                .load(&mut connection)?;
            let (sender, jobs) = unbounded();
            thread::spawn(move || serve(connection, &jobs));
            nodes.push(sender);
        }
        let pipelines = Arc::new(Pipelines { nodes });
        let client = |name: String| Pipelined {
            pipelines: Arc::clone(&pipelines),
            token: format!("token-of-{name}"),
            key: format!("redguard:{name}"),
            sha: Script::new(RELEASE).get_hash().to_owned(),
            ttl,
        };
        Ok(names.map(|name| Box::new(client(name)) as _).collect())
    }

    /// Sends the command to all nodes, and blocks until a quorum has granted it.
    fn ask(&self, cmd: &Cmd) -> Result<()> {
        let bytes = Arc::new(cmd.get_packed_command());
        let votes = Arc::new(Votes::default());
        for node in &self.pipelines.nodes {
            node.send(Job {
                bytes: Arc::clone(&bytes),
                votes: Arc::clone(&votes),
            })?;
        }
        let nodes = self.pipelines.nodes.len();
        let quorum = nodes / 2 + 1;
        let mut counts = votes.counts.lock();
        while counts.0 < quorum {
            if counts.1 > nodes - quorum {
                return Err(format!("{}: not granted", self.key).into());
            }
            votes.changed.wait(&mut counts);
        }
        Ok(())
    }
}

impl Client for Pipelined {
    fn acquire(&mut self) -> Result<()> {
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(&self.token).arg("NX");
        self.ask(set.arg("PX").arg(self.ttl.as_millis() as u64))
    }

    fn release(&mut self) -> Result<()> {
        let mut release = redis::cmd("EVALSHA");
        release.arg(&self.sha).arg(1).arg(&self.key);
        self.ask(release.arg(&self.token))
    }
}

/// Serves a node until all clients are gone: sends what has been queued, then reads the replies.
fn serve(mut connection: Connection, jobs: &Receiver<Job>) {
    let (mut batch, mut bytes) = (Vec::with_capacity(MAX_BATCH), Vec::new());
    while let Ok(first) = jobs.recv() {
        batch.push(first);
        batch.extend(jobs.try_iter().take(MAX_BATCH - 1));
        bytes.clear();
        batch
            .iter()
            .for_each(|job| bytes.extend_from_slice(&job.bytes));
        if redis::ConnectionLike::req_packed_commands(&mut connection, &bytes, 0, batch.len())
            .map(|replies| deliver(&mut batch, replies))
            .is_err()
        {
            return;
        }
    }
}

fn deliver(batch: &mut Vec<Job>, replies: Vec<Value>) {
    for (job, reply) in batch.drain(..).zip(replies) {
        let mut counts = job.votes.counts.lock();
        match reply {
            Value::Okay | Value::Int(1) => counts.0 += 1,
            _ => counts.1 += 1,
        }
        drop(counts); // unlock before waking
        job.votes.changed.notify_one();
    }
}
