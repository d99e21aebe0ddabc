//! Faults of servers, links and connections, and their descriptions in words.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tests::simulation::network::network::{Network, NetworkEvent, NetworkState};
use crate::tests::simulation::network::packet::Packet;
use crate::tests::simulation::network::server::{Power, Refusal};
use crate::tests::simulation::world;

/// A change of a server, a link or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimedChange {
    /// The server's process ends, or its machine if `is_gone`.
    Crash {
        server: usize,
        is_gone: bool,
        loses_data: bool,
    },
    Restart {
        server: usize,
    },
    Hang {
        server: usize,
    },
    Resume {
        server: usize,
    },
    Refuse {
        server: usize,
        refusal: Refusal,
    },
    Accept {
        server: usize,
        refusal: Refusal,
    },
    /// Whether published messages are lost.
    Mute {
        server: usize,
        is_mute: bool,
    },
    FlushScripts {
        server: usize,
    },
    /// Packets between the two arrive only after this time.
    Block {
        process: usize,
        server: usize,
        lasts: Duration,
    },
    /// Connects between the two get no reply for this time.
    Shut {
        process: usize,
        server: usize,
        lasts: Duration,
    },
    /// The connections between the two become half-open.
    Silence {
        process: usize,
        server: usize,
    },
    /// The server closes its connections to the process.
    Disconnect {
        process: usize,
        server: usize,
    },
    /// A balancer closes the connections at the process; packets on their way to the server arrive.
    CutBetween {
        process: usize,
        server: usize,
    },
    /// The server's clock is set forward by this many µs.
    StepClock {
        server: usize,
        by: i64,
    },
    /// Another client overwrites a lock, for this time.
    Steal {
        server: usize,
        lock: usize,
        lasts: Duration,
    },
    /// The process has ended. Its connections end, or become half-open if `is_silent`.
    ProcessEnds {
        process: usize,
        is_silent: bool,
    },
    /// All faults end.
    Calm,
}

impl TimedChange {
    /// Returns the server that a process may find out of reach because of the change.
    fn outage_of(self) -> Option<usize> {
        match self {
            TimedChange::Crash { server, .. }
            | TimedChange::Hang { server }
            | TimedChange::Block { server, .. }
            | TimedChange::Shut { server, .. }
            | TimedChange::Silence { server, .. }
            | TimedChange::Disconnect { server, .. }
            | TimedChange::CutBetween { server, .. }
            | TimedChange::Refuse {
                server,
                refusal: Refusal::Loading,
            } => Some(server),
            _ => None,
        }
    }
}

impl Network {
    /// Schedules a change of the network.
    pub(crate) fn change_after(&self, delay: Duration, change: TimedChange) {
        self.with(|state, now| state.schedule(now + delay, NetworkEvent::Change(change)));
    }
}

impl NetworkState {
    pub(super) fn change(&mut self, change: TimedChange, at: Instant) {
        if self.is_calm {
            return;
        }
        self.note(|| change.to_string());
        if let Some(server) = change.outage_of() {
            self.servers[server].had_outage = true;
        }
        match change {
            TimedChange::Crash {
                server,
                is_gone,
                loses_data,
            } => self.crash(server, is_gone, loses_data, at),
            TimedChange::Restart { server } => self.restart(server, at),
            TimedChange::Hang { server } if self.servers[server].power == Power::Up => {
                self.servers[server].power = Power::Hung;
            }
            TimedChange::Hang { .. } => {}
            TimedChange::Resume { server } => self.resume(server, at),
            TimedChange::Refuse { server, refusal } => self.servers[server].refusals.push(refusal),
            TimedChange::Accept { server, refusal } => {
                self.servers[server].refusals.retain(|own| *own != refusal);
            }
            TimedChange::Mute { server, is_mute } => self.servers[server].is_mute = is_mute,
            TimedChange::FlushScripts { server } => self.servers[server].scripts = 0,
            TimedChange::Block {
                process,
                server,
                lasts,
            } => self.links[process][server].blocked_until = at + lasts,
            TimedChange::Shut {
                process,
                server,
                lasts,
            } => self.links[process][server].unreachable_until = at + lasts,
            TimedChange::Silence { process, server } => self.each(process, server, |state, id| {
                state.connections[id].is_silent = true;
            }),
            TimedChange::Disconnect { process, server } => {
                self.each(process, server, |state, id| state.close_by_server(id, at));
            }
            TimedChange::CutBetween { process, server } => {
                self.each(process, server, |state, id| {
                    state.cut(id);
                })
            }
            TimedChange::StepClock { server, by } => self.servers[server].clock.offset += by,
            TimedChange::ProcessEnds { process, is_silent } => {
                self.end_process(process, is_silent, at);
            }
            TimedChange::Steal {
                server,
                lock,
                lasts,
            } => self.servers[server].give_to_stranger(&world::exclusive_key(lock), lasts, at),
            TimedChange::Calm => self.calm(at),
        }
    }

    /// Calls `act` with each open connection between a process and a server.
    fn each(&mut self, process: usize, server: usize, act: impl Fn(&mut Self, usize)) {
        for id in 0..self.connections.len() {
            let connection = &self.connections[id];
            let is_between = (connection.process, connection.server) == (process, server);
            if is_between && connection.client_open {
                act(self, id);
            }
        }
    }

    fn crash(&mut self, server: usize, is_gone: bool, loses_data: bool, at: Instant) {
        let power = if is_gone { Power::Gone } else { Power::Down };
        self.servers[server].crash(power, loses_data);
        // Connections that their clients have closed, too: packets on their way in them are lost.
        for id in 0..self.connections.len() {
            if self.connections[id].server == server {
                match is_gone {
                    true => self.close_at_server(id),
                    false => self.close_by_server(id, at),
                }
            }
        }
    }

    fn restart(&mut self, server: usize, at: Instant) {
        if matches!(self.servers[server].power, Power::Down | Power::Gone) {
            self.servers[server].restart(at);
        }
    }

    fn end_process(&mut self, process: usize, is_silent: bool, at: Instant) {
        for server in 0..self.servers.len() {
            self.each(process, server, |state, id| match is_silent {
                true => state.connections[id].is_silent = true,
                false => state.close_by_client(id, at),
            });
        }
    }

    fn resume(&mut self, server: usize, at: Instant) {
        if self.servers[server].power == Power::Hung {
            self.servers[server].power = Power::Up;
            self.serve_backlog(server, at);
        }
    }

    fn cut(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if connection.closed().is_none() {
            let cause = "Connection reset by peer (os error 104)";
            connection.received.push_back(Packet::Closed(cause));
            self.signals.push_back(Arc::clone(&connection.changed));
        }
    }

    fn calm(&mut self, at: Instant) {
        for server in 0..self.servers.len() {
            let own = &mut self.servers[server];
            own.refusals.clear();
            own.is_mute = false;
            match own.power {
                Power::Down | Power::Gone => own.restart(at),
                Power::Up | Power::Hung => self.resume(server, at),
            }
        }
        for link in self.links.iter_mut().flatten() {
            (link.blocked_until, link.unreachable_until) = (at, at);
        }
        self.is_calm = true;
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one line of text for each kind of change"
)]
impl fmt::Display for TimedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimedChange::Crash {
                server,
                is_gone,
                loses_data,
            } => {
                let what = if *is_gone {
                    "loses its power"
                } else {
                    "crashes"
                };
                let data = if *loses_data { " and its data" } else { "" };
                write!(f, "server {server} {what}{data}")
            }
            TimedChange::Restart { server } => write!(f, "server {server} starts again"),
            TimedChange::Hang { server } => write!(f, "server {server} hangs"),
            TimedChange::Resume { server } => write!(f, "server {server} continues"),
            TimedChange::Refuse { server, refusal } => {
                write!(f, "server {server} begins to refuse: {refusal:?}")
            }
            TimedChange::Accept { server, refusal } => {
                write!(f, "server {server} ends to refuse: {refusal:?}")
            }
            TimedChange::Mute { server, is_mute } => {
                write!(f, "messages of server {server} are lost: {is_mute}")
            }
            TimedChange::FlushScripts { server } => write!(f, "server {server} loses its scripts"),
            TimedChange::Block {
                process,
                server,
                lasts,
            } => write!(
                f,
                "packets of process {process} and server {server} take {lasts:?} more"
            ),
            TimedChange::Shut {
                process,
                server,
                lasts,
            } => write!(
                f,
                "connects of process {process} to server {server} are lost for {lasts:?}"
            ),
            TimedChange::Silence { process, server } => {
                write!(
                    f,
                    "connections of process {process} to server {server} become half-open"
                )
            }
            TimedChange::Disconnect { process, server } => {
                write!(
                    f,
                    "server {server} closes the connections of process {process}"
                )
            }
            TimedChange::CutBetween { process, server } => {
                write!(
                    f,
                    "connections of process {process} to server {server} are cut"
                )
            }
            TimedChange::StepClock { server, by } => {
                write!(f, "the clock of server {server} steps by {by} µs")
            }
            TimedChange::Steal {
                server,
                lock,
                lasts,
            } => write!(
                f,
                "another client overwrites lock {lock} on server {server} for {lasts:?}"
            ),
            TimedChange::ProcessEnds { process, is_silent } => match is_silent {
                true => write!(f, "the machine of process {process} ends"),
                false => write!(f, "process {process} ends"),
            },
            TimedChange::Calm => write!(f, "all faults end"),
        }
    }
}
