//! The inside of a proxy: its rules, its connections, and the threads that forward the bytes.
#![expect(
    clippy::disallowed_methods,
    reason = "delays are measured on the real clock, as a network's are"
)]

use std::io;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::proxy::{Door, Flow};

/// The state that a proxy shares with its threads.
#[derive(Debug)]
pub(super) struct Shared {
    target: String,
    pub(super) at: SocketAddr,
    rules: Mutex<Rules>,
    changed: Condvar,
    pub(super) links: Mutex<Vec<Link>>,
    pub(super) accepted: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) replies: AtomicU64,
}

/// A direction: from the clients to the server, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Requests,
    Replies,
}

/// The treatment of bytes and connections. The arrays are indexed by `Way`.
#[derive(Debug)]
pub(super) struct Rules {
    flows: [Flow; 2],
    /// Counts how often the flow was set to swallow.
    swallows: [u64; 2],
    pub(super) door: Door,
    pub(super) cut_after: Option<usize>,
}

impl Rules {
    pub(super) fn set(&mut self, way: Way, flow: Flow) {
        self.flows[way as usize] = flow;
        self.swallows[way as usize] += u64::from(flow == Flow::Swallow);
    }

    /// Returns the value of `swallows` at which a new connection stays alive; one less while the
    /// flow swallows.
    fn birth(&self) -> [u64; 2] {
        [0, 1].map(|way| self.swallows[way] - u64::from(self.flows[way] == Flow::Swallow))
    }
}

/// One connection through the proxy, with its threads.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: Arc<Ends>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

/// Both sockets of a link.
#[derive(Debug)]
pub(super) struct Ends {
    client: TcpStream,
    server: TcpStream,
    birth: [u64; 2],
    cut: AtomicBool,
    /// Directions whose end of stream was forwarded.
    ended: AtomicUsize,
}

impl Ends {
    pub(super) fn cut(&self, shared: &Shared) {
        self.cut.store(true, SeqCst);
        _ = self.client.shutdown(Shutdown::Both);
        _ = self.server.shutdown(Shutdown::Both);
        shared.rule(|_| ());
    }

    pub(super) fn over(&self) -> bool {
        self.cut.load(SeqCst) || self.ended.load(SeqCst) == 2
    }
}

/// Bytes with their arrival time; empty at the end of the stream, which is forwarded in order after
/// them.
type Chunk = (Instant, Vec<u8>);

impl Shared {
    /// Returns the state of a proxy with a closed door.
    pub(super) fn new(target: String, at: SocketAddr) -> Shared {
        Shared {
            target,
            at,
            rules: Mutex::new(Rules {
                flows: [Flow::Pass; 2],
                swallows: [0; 2],
                door: Door::Shut,
                cut_after: None,
            }),
            changed: Condvar::new(),
            links: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            replies: AtomicU64::new(0),
        }
    }

    /// Changes the rules and wakes all threads that wait under the old rules.
    pub(super) fn rule(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut lock(&self.rules));
        self.changed.notify_all();
    }

    pub(super) fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        for client in listener.incoming() {
            let (door, birth) = {
                let rules = lock(&self.rules);
                (rules.door, rules.birth())
            };
            if door == Door::Shut {
                return;
            }
            let Ok(client) = client else { continue };
            self.accepted.fetch_add(1, SeqCst);
            if door == Door::Open {
                // A target that is down slams the door too.
                _ = self.link(client, birth);
            }
        }
    }

    /// Ends the acceptor of a closed door. Returns false if there was none.
    pub(super) fn stop(&self, acceptor: Option<JoinHandle<()>>) -> bool {
        let Some(thread) = acceptor else { return false };
        // Wakes the acceptor from `accept`.
        _ = TcpStream::connect(self.at);
        _ = thread.join();
        true
    }

    /// Starts two threads per direction, because a thread that waits to write cannot stamp arriving
    /// bytes.
    fn link(self: &Arc<Shared>, client: TcpStream, birth: [u64; 2]) -> io::Result<()> {
        let server = TcpStream::connect(&self.target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ends = Arc::new(Ends {
            client,
            server,
            birth,
            cut: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
        });
        // Held until the link is in the list: a client that received a reply through the link can
        // then cut it.
        let mut links = lock(&self.links);
        links.retain(|link| !link.ends.over());
        let mut threads = Vec::new();
        for way in [Way::Requests, Way::Replies] {
            let (sender, receiver) = channel();
            let (here, there) = (Arc::clone(self), Arc::clone(self));
            let (from, to) = (Arc::clone(&ends), Arc::clone(&ends));
            threads.push(start("proxy-read", move || here.read(&from, way, &sender)));
            threads.push(start("proxy-write", move || {
                there.write(&to, way, &receiver)
            }));
        }
        links.push(Link { ends, threads });
        Ok(())
    }

    fn read(&self, ends: &Ends, way: Way, queue: &Sender<Chunk>) {
        let (mut stream, bytes) = match way {
            Way::Requests => (&ends.client, &self.requests),
            Way::Replies => (&ends.server, &self.replies),
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            // A reset ends the stream as a close does.
            let len = stream.read(&mut buffer).unwrap_or(0);
            bytes.fetch_add(len as u64, SeqCst);
            let sent = queue.send((Instant::now(), buffer[..len].to_vec()));
            if sent.is_err() || len == 0 {
                return;
            }
        }
    }

    fn write(&self, ends: &Ends, way: Way, queue: &Receiver<Chunk>) {
        let mut stream = match way {
            Way::Requests => &ends.server,
            Way::Replies => &ends.client,
        };
        for (since, bytes) in queue {
            if !self.await_turn(ends, way, since) {
                // The reader continues, so that the sender never sees a full window.
                return queue.iter().for_each(drop);
            }
            if bytes.is_empty() {
                _ = stream.shutdown(Shutdown::Write);
                ends.ended.fetch_add(1, SeqCst);
                return;
            }
            let cut = match way {
                Way::Requests => None,
                Way::Replies => self.take_cut(bytes.len()),
            };
            let written = stream.write_all(&bytes[..cut.unwrap_or(bytes.len())]);
            if written.is_err() || cut.is_some() {
                return ends.cut(self);
            }
        }
    }

    /// Blocks until a chunk may be forwarded. Returns false if it never may.
    fn await_turn(&self, ends: &Ends, way: Way, since: Instant) -> bool {
        let mut rules = lock(&self.rules);
        let at = way as usize;
        while !ends.cut.load(SeqCst) && ends.birth[at] == rules.swallows[at] {
            let left = match rules.flows[at] {
                Flow::Pass => return true,
                Flow::Delay(latency) => latency.saturating_sub(since.elapsed()),
                Flow::Hold | Flow::Swallow => Duration::MAX,
            };
            if left.is_zero() {
                return true;
            }
            rules = self
                .changed
                .wait_timeout(rules, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }

    /// Returns the offset of a pending cut within the next `len` bytes of replies, if it is there.
    fn take_cut(&self, len: usize) -> Option<usize> {
        let mut rules = lock(&self.rules);
        let left = rules.cut_after?;
        rules.cut_after = left.checked_sub(len).filter(|&more| more > 0);
        rules.cut_after.is_none().then_some(left)
    }
}

pub(super) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .expect("a thread")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
