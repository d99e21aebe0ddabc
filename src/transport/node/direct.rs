//! Direct sends: single requests on a session, whose replies can be polled.
//!
//! A send and a poll never block. With an `end`, which only the worker passes, a reply is awaited.
//!
//! Tests: `src/tests/transport/pipeline.rs` over fake sessions; beside `plain_stream.rs`;
//! `tests/it/nodes/hostile.rs`.

use std::collections::VecDeque;
use std::time::Instant;

use redis::{RedisError, Value};

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::server_error;
use crate::protocol::server_error::protocol_error;
use crate::time::clock;
use crate::transport::node::session::{ExpectedReply, RedisSession};
use crate::transport::node::traits::{DirectIo, InFlight};

impl DirectIo for RedisSession {
    fn can_append(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.all(|reply| matches!(reply, ExpectedReply::Request(_)))
    }

    fn send(&mut self, sent: &InFlight, bytes: &[u8]) -> Result<(), NodeFailure> {
        self.expected.push_back(ExpectedReply::Request(sent.id));
        // Only a plain stream can be polled, so a session over TLS offers no direct sends.
        let plain = self.stream.plain().ok_or_else(protocol_error)?;
        let failure =
            |error| server_error::failure_redacted(&RedisError::from(error), &self.password);
        plain.send_nonblocking(bytes).map_err(failure)
    }

    fn next_reply(
        &mut self,
        in_flight: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        while let Some(expected) = self.expected.front().copied() {
            let reply = match end {
                Some(end) => self.receive(end)?,
                None => match self.poll_reply()? {
                    Some(reply) => reply,
                    None => return Ok(None),
                },
            };
            self.expected.pop_front();
            let request = match expected.id() {
                Some(id) => {
                    let sent = in_flight.iter().find(|sent| sent.id == id);
                    Some((id, &*sent.ok_or_else(protocol_error)?.request))
                }
                None => None,
            };
            let mut parsed = None;
            self.out.clear();
            self.handle_reply(expected, &reply, request.into_iter(), &mut |id, reply| {
                parsed = Some((id, reply));
            })?;
            if !self.out.is_empty() {
                RedisSession::send(self, clock::now() + self.timeout)?;
            }
            if parsed.is_some() {
                return Ok(parsed);
            }
        }
        Ok(None)
    }
}

impl RedisSession {
    fn poll_reply(&mut self) -> Result<Option<Value>, NodeFailure> {
        self.stream
            .poll_reply()
            .map_err(|error| server_error::failure_redacted(&error, &self.password))
    }
}
