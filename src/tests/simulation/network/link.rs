//! The links between processes and servers, and the connections on them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::tests::simulation::network::packet::Packet;
use crate::tests::simulation::runtime::signal::Signal;

/// The delays of packets, in µs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    /// The usual delay of a packet is at most this, and at least a quarter of it.
    pub(crate) usual: u64,
    /// The number of packets in ten thousand that are late, as after a retransmission.
    pub(crate) late_share: u32,
    /// The longest delay of a late packet.
    pub(crate) late: u64,
}

impl Delays {
    pub(super) fn draw(self, rng: &mut Rng, is_calm: bool) -> Duration {
        let is_late = !is_calm && self.late_share > 0 && rng.u32(..10_000) < self.late_share;
        Duration::from_micros(match is_late {
            true => rng.u64(self.usual..=self.late.max(self.usual)),
            false => rng.u64(self.usual / 4..=self.usual),
        })
    }
}

/// The way between one process and one server.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Packets that are sent before this time arrive after it.
    pub(super) blocked_until: Instant,
    /// Connects get no reply before this time.
    pub(super) unreachable_until: Instant,
    /// The number of handshakes that the server has completed.
    pub(super) connects: usize,
}

/// A connection from a process to a server, as both ends see it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) process: usize,
    pub(super) server: usize,
    /// The client still reads.
    pub(super) client_open: bool,
    /// The server still reads.
    pub(super) server_open: bool,
    /// Packets are lost without notice, in both directions.
    pub(super) is_silent: bool,
    /// The client's id on the server.
    pub(super) client_id: i64,
    /// When the last packet arrives at the server, and at the client: packets keep their order.
    pub(super) last_arrival: [Instant; 2],
    /// The packets that have arrived at the client.
    pub(super) received: VecDeque<Packet>,
    pub(super) changed: Arc<Signal>,
}

impl Connection {
    pub(super) fn new(process: usize, server: usize, now: Instant) -> Connection {
        Connection {
            process,
            server,
            client_open: true,
            server_open: false,
            is_silent: false,
            client_id: 0,
            last_arrival: [now; 2],
            received: VecDeque::new(),
            changed: Arc::default(),
        }
    }

    /// Returns whether the connection has ended, as its client sees it after all that was received.
    pub(super) fn closed(&self) -> Option<&'static str> {
        match self.received.back() {
            Some(Packet::Closed(cause)) => Some(cause),
            _ => None,
        }
    }
}
