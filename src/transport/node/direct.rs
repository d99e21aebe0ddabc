//! Requests that are sent one by one, whose replies are looked for.

use std::collections::VecDeque;
use std::time::Instant;

use redis::Value;

use crate::error::NodeFailure;
use crate::protocol::reply::{ParsedReply, Reply};
use crate::protocol::server_error::protocol_error;
use crate::protocol::{encode, reply, server_error};
use crate::time::clock;
use crate::transport::node::session::{ExpectedReply, RedisSession};
use crate::transport::node::traits::{DirectIo, InFlight};

impl DirectIo for RedisSession {
    fn can_append(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.all(|one| matches!(one, ExpectedReply::Request(_)))
    }

    fn send(&mut self, number: u64, bytes: &[u8]) -> Result<(), NodeFailure> {
        self.expected.push_back(ExpectedReply::Request(number));
        let cause = |error| server_error::failure_redacted(&error, &self.password);
        self.stream.send_nonblocking(bytes).map_err(cause)
    }

    fn next_reply(
        &mut self,
        flights: &VecDeque<InFlight>,
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
            if let Some(answer) = self.handle_reply(expected, &reply, flights)? {
                return Ok(Some(answer));
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

    /// The answer that a reply is, unless more has to be asked.
    fn handle_reply(
        &mut self,
        expected: ExpectedReply,
        reply: &Value,
        flights: &VecDeque<InFlight>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        let (ExpectedReply::Request(number)
        | ExpectedReply::RemainingTtl(number)
        | ExpectedReply::Resent(number)) = expected
        else {
            self.script_load_failure = Some(server_error::unloaded(reply));
            return Ok(None);
        };
        let flight = flights.iter().find(|flight| flight.number == number);
        let request = &flight.ok_or_else(protocol_error)?.request;
        if let ExpectedReply::RemainingTtl(_) = expected {
            let held = reply::parse_pttl(reply).ok_or_else(protocol_error)?;
            return Ok(Some((number, held)));
        }
        self.out.clear();
        let next = match (reply::parse_reply(request, 0, reply), expected) {
            (ParsedReply::Reply(answer), _) => return Ok(Some((number, answer))),
            (ParsedReply::RefusedAskTtl, ExpectedReply::Request(_)) => {
                encode::encode_pttl(request, &mut self.cmd, &mut self.out);
                ExpectedReply::RemainingTtl(number)
            }
            (ParsedReply::ScriptMissing, ExpectedReply::Request(_)) => {
                let (cmd, out) = (&mut self.cmd, &mut self.out);
                encode::encode_with_script_load(request, std::iter::empty(), cmd, out);
                self.expected.push_back(ExpectedReply::ScriptLoad);
                ExpectedReply::Resent(number)
            }
            (ParsedReply::ScriptMissing, _) => {
                let cause = self
                    .script_load_failure
                    .take()
                    .unwrap_or_else(protocol_error);
                return Ok(Some((number, Reply::Failed(cause))));
            }
            (ParsedReply::RefusedAskTtl | ParsedReply::ProtocolError, _) => {
                return Err(protocol_error());
            }
        };
        self.expected.push_back(next);
        RedisSession::send(self, clock::now() + self.timeout)?;
        Ok(None)
    }
}
