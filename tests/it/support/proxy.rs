//! A TCP proxy before one server, which delays, holds, swallows, cuts or refuses on request.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::eventually;
use crate::support::proxy::wire::{Shared, Way, lock, start};
use crate::support::servers::free_port;

mod wire;

/// Greater than the number of sockets of a starting process.
const SETTLED: Duration = Duration::from_secs(5);

/// Treatment of the bytes, and of the end of the stream, in one direction. A change also applies to
/// bytes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// Delays each byte; this is a latency, not a limit on the rate.
    Delay(Duration),
    /// Holds all bytes until the flow changes, as a network that hangs.
    Hold,
    /// Drops all bytes. A connection that existed meanwhile stays dead in that direction, because a
    /// TCP stream has no gaps. Later connections are not affected.
    Swallow,
}

/// Treatment of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Accepts and closes at once.
    Slam,
    /// Does not listen, so that connects are refused.
    Shut,
}

/// A proxy on a port of its own, which at first forwards everything. A drop closes all connections
/// and joins the threads.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// Starts a proxy to `target` (`host:port`). The proxy connects once per client, so the target
    /// may be down at first.
    pub(crate) fn to(target: impl Into<String>) -> Proxy {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().expect("a free port")));
        let proxy = Proxy {
            shared: Arc::new(Shared::new(target.into(), at)),
            acceptor: Mutex::new(None),
        };
        proxy.door(Door::Open);
        proxy
    }

    pub(crate) fn addr(&self) -> String {
        self.shared.at.to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.shared.at)
    }

    /// Restores the first state: both directions pass, the door is open, no cut is pending.
    pub(crate) fn pass(&self) {
        self.both(Flow::Pass);
        self.shared.rule(|rules| rules.cut_after = None);
        self.door(Door::Open);
    }

    /// Sets the flow from clients to the server.
    pub(crate) fn requests(&self, flow: Flow) {
        self.shared.rule(|rules| rules.set(Way::Requests, flow));
    }

    /// Sets the flow from the server to clients.
    pub(crate) fn replies(&self, flow: Flow) {
        self.shared.rule(|rules| rules.set(Way::Replies, flow));
    }

    pub(crate) fn both(&self, flow: Flow) {
        self.requests(flow);
        self.replies(flow);
    }

    /// Closes all present connections on both sides at once; bytes in flight are lost.
    pub(crate) fn cut(&self) {
        for link in lock(&self.shared.links).iter() {
            link.ends.cut(&self.shared);
        }
    }

    /// Forwards `n` more bytes of replies, over all connections, then cuts the connection of the
    /// last byte. With 0 the next reply is lost although its request was executed. Happens once.
    pub(crate) fn cut_reply_after(&self, n: usize) {
        self.shared.rule(|rules| rules.cut_after = Some(n));
    }

    /// Sets the door. Present connections stay open behind a closed door.
    pub(crate) fn door(&self, door: Door) {
        // Held throughout, because two calls at once must not start two acceptors.
        let mut acceptor = lock(&self.acceptor);
        self.shared.rule(|rules| rules.door = door);
        // A process that another thread is starting has copies of our sockets until its `exec`, so
        // a port may stay in use, or open, a moment longer than its listener.
        if door != Door::Shut && acceptor.is_none() {
            let mut listener = None;
            eventually(SETTLED, "the proxy's port is free", || {
                listener = TcpListener::bind(self.shared.at).ok();
                listener.is_some()
            });
            let shared = Arc::clone(&self.shared);
            *acceptor = listener.map(|l| start("proxy-accept", move || shared.accept(&l)));
        } else if door == Door::Shut && self.shared.stop(acceptor.take()) {
            eventually(SETTLED, "the proxy's port refuses", || {
                TcpStream::connect(self.shared.at).is_err()
            });
        }
    }

    /// Returns the number of accepted connections, including slammed connections.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(SeqCst)
    }

    /// Returns the number of connections that were neither cut nor ended in both directions.
    pub(crate) fn open(&self) -> usize {
        lock(&self.shared.links)
            .iter()
            .filter(|link| !link.ends.over())
            .count()
    }

    /// Returns the number of bytes that clients sent, forwarded or not.
    pub(crate) fn request_bytes(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// Returns the number of bytes that the server sent, forwarded or not.
    pub(crate) fn reply_bytes(&self) -> u64 {
        self.shared.replies.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.rule(|rules| rules.door = Door::Shut);
        // Closes the door first, so that no link appears after the cut.
        self.shared.stop(lock(&self.acceptor).take());
        self.cut();
        let links = std::mem::take(&mut *lock(&self.shared.links));
        for thread in links.into_iter().flat_map(|link| link.threads) {
            _ = thread.join();
        }
    }
}
