//! A subscriber's connection to a simulated server.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::server_error::protocol_error;
use crate::tests::simulation::network::connector::ClientEnd;
use crate::tests::simulation::network::packet::{Command, Packet};
use crate::time::clock;
use crate::transport::node::traits::{Event, Subscriber};

pub(super) struct SimulatedSubscriber {
    client: ClientEnd,
    node_timeout: Duration,
    /// The number of replies to each command, and when they are overdue.
    expected: VecDeque<(usize, Instant)>,
}

impl SimulatedSubscriber {
    pub(super) fn new(client: ClientEnd, node_timeout: Duration) -> SimulatedSubscriber {
        SimulatedSubscriber {
            client,
            node_timeout,
            expected: VecDeque::new(),
        }
    }

    fn send(&mut self, command: Command, replies: usize) -> Result<(), NodeFailure> {
        self.expected
            .push_back((replies, clock::now() + self.node_timeout));
        self.client.send(vec![command])
    }

    /// Counts a reply; a message is none, and a refusal is the only one to its command.
    fn count(&mut self, event: &Event) {
        let Some((replies, _)) = self.expected.front_mut() else {
            return;
        };
        if event.is_message() {
            return;
        }
        match event {
            Event::Refused(..) => *replies = 0,
            _ => *replies -= 1,
        }
        if *replies == 0 {
            self.expected.pop_front();
        }
    }
}

impl Subscriber for SimulatedSubscriber {
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure> {
        self.send(
            Command::Subscribe(command, channels.to_vec()),
            channels.len(),
        )
    }

    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure> {
        self.send(Command::Unsubscribe(channels.to_vec()), channels.len())
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.send(Command::Ping, 1)
    }

    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure> {
        let overdue = self.expected.front().map(|(_, end)| *end);
        let end = overdue.unwrap_or_else(|| clock::now() + wait);
        let event = match self.client.receive(end) {
            Ok(Packet::Event(event)) => event,
            Ok(Packet::Pong) => Event::Other,
            Ok(_) => return Err(protocol_error()),
            Err(NodeFailure::TimedOut) if overdue.is_none() => return Ok(None),
            Err(cause) => return Err(cause),
        };
        self.count(&event);
        Ok(Some(event))
    }
}
