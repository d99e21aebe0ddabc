//! A TCP proxy before one server, which delays, holds, swallows, cuts and refuses as the test says.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::eventually;
use crate::support::proxy::wire::{Shared, Way, lock, start};
use crate::support::servers::free_port;

mod wire;

/// Far more than the sockets of a process need that is being started.
const SETTLED: Duration = Duration::from_secs(5);

/// What happens to the bytes, and to the end of the stream, in one direction. A change holds for bytes under way, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// Each byte arrives this much later; a latency, not a limit on the rate.
    Delay(Duration),
    /// Nothing arrives, but everything will once the flow is another: a network that hangs.
    Hold,
    /// Nothing arrives, ever. A connection that lived under it stays dead in that direction also afterwards, as no TCP
    /// stream has a hole in it; later connections are not affected.
    Swallow,
}

/// What happens to new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Accepted, and closed at once.
    Slam,
    /// Not listening: connect is refused.
    Shut,
}

/// A proxy on a port of its own; begins with everything passing. Dropping it closes all and joins its threads.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// `target` is `host:port`; it is connected to once per client, so it may be down for now.
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

    /// Back to the beginning: both directions pass, the door is open, no cut is pending.
    pub(crate) fn pass(&self) {
        self.both(Flow::Pass);
        self.shared.rule(|rules| rules.cut_after = None);
        self.door(Door::Open);
    }

    /// Client to server.
    pub(crate) fn requests(&self, flow: Flow) {
        self.shared.rule(|rules| rules.set(Way::Requests, flow));
    }

    /// Server to client.
    pub(crate) fn replies(&self, flow: Flow) {
        self.shared.rule(|rules| rules.set(Way::Replies, flow));
    }

    pub(crate) fn both(&self, flow: Flow) {
        self.requests(flow);
        self.replies(flow);
    }

    /// Closes all present connections on both sides at once; what was under way in them is lost.
    pub(crate) fn cut(&self) {
        for link in lock(&self.shared.links).iter() {
            link.ends.cut(&self.shared);
        }
    }

    /// Lets `n` more bytes of replies through, over all connections, then cuts the connection that brought the last.
    /// With 0 the next reply does not arrive at all, though its request was done. Happens once.
    pub(crate) fn cut_reply_after(&self, n: usize) {
        self.shared.rule(|rules| rules.cut_after = Some(n));
    }

    /// Present connections live on behind a closed door.
    pub(crate) fn door(&self, door: Door) {
        // Held throughout: two calls at once must not start two acceptors.
        let mut acceptor = lock(&self.acceptor);
        self.shared.rule(|rules| rules.door = door);
        // A process that another thread starts right now has copies of our sockets until its `exec`: a port may stay
        // taken, or open, a moment longer than its listener.
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

    /// Connections accepted so far, slammed ones included.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(SeqCst)
    }

    /// Connections that neither were cut nor have ended by themselves in both directions.
    pub(crate) fn open(&self) -> usize {
        lock(&self.shared.links)
            .iter()
            .filter(|link| !link.ends.over())
            .count()
    }

    /// Bytes that clients have sent, forwarded or not.
    pub(crate) fn request_bytes(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// Bytes that the server has sent, forwarded or not.
    pub(crate) fn reply_bytes(&self) -> u64 {
        self.shared.replies.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.rule(|rules| rules.door = Door::Shut);
        // First, so that no link is made behind the cut.
        self.shared.stop(lock(&self.acceptor).take());
        self.cut();
        let links = std::mem::take(&mut *lock(&self.shared.links));
        for thread in links.into_iter().flat_map(|link| link.threads) {
            _ = thread.join();
        }
    }
}
