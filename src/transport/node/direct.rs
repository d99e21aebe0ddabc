//! Requests that are sent one by one, whose replies are looked for.

use std::collections::VecDeque;
use std::time::Instant;

use redis::Value;

use crate::error::Cause;
use crate::protocol::reply::{Answer, Read};
use crate::protocol::server_error::out_of_step;
use crate::protocol::{encode, reply, server_error};
use crate::time::clock;
use crate::transport::node::session::{Expected, RedisSession};
use crate::transport::node::traits::{Flight, Prompt};

impl Prompt for RedisSession {
    fn is_in_order(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.all(|one| matches!(one, Expected::Whole(_)))
    }

    fn send(&mut self, number: u64, bytes: &[u8]) -> Result<(), Cause> {
        self.expected.push_back(Expected::Whole(number));
        let cause = |error| server_error::cause_without(&error, &self.password);
        self.wire.send_at_once(bytes).map_err(cause)
    }

    fn next(
        &mut self,
        flights: &VecDeque<Flight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Answer)>, Cause> {
        while let Some(expected) = self.expected.front().copied() {
            let reply = match end {
                Some(end) => self.receive(end)?,
                None => match self.look()? {
                    Some(reply) => reply,
                    None => return Ok(None),
                },
            };
            self.expected.pop_front();
            if let Some(answer) = self.take(expected, &reply, flights)? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

impl RedisSession {
    fn look(&mut self) -> Result<Option<Value>, Cause> {
        self.wire
            .look()
            .map_err(|error| server_error::cause_without(&error, &self.password))
    }

    /// The answer that a reply is, unless more has to be asked.
    fn take(
        &mut self,
        expected: Expected,
        reply: &Value,
        flights: &VecDeque<Flight>,
    ) -> Result<Option<(u64, Answer)>, Cause> {
        let (Expected::Whole(number) | Expected::Left(number) | Expected::Again(number)) = expected
        else {
            self.unloaded = Some(server_error::unloaded(reply));
            return Ok(None);
        };
        let flight = flights.iter().find(|flight| flight.number == number);
        let request = &flight.ok_or_else(out_of_step)?.request;
        if let Expected::Left(_) = expected {
            let held = reply::read_left(reply).ok_or_else(out_of_step)?;
            return Ok(Some((number, held)));
        }
        self.out.clear();
        let next = match (reply::read(request, 0, reply), expected) {
            (Read::Answer(answer), _) => return Ok(Some((number, answer))),
            (Read::Refused, Expected::Whole(_)) => {
                encode::write_left(request, &mut self.cmd, &mut self.out);
                Expected::Left(number)
            }
            (Read::NoScript, Expected::Whole(_)) => {
                let (cmd, out) = (&mut self.cmd, &mut self.out);
                encode::write_with_script(request, std::iter::empty(), cmd, out);
                self.expected.push_back(Expected::Script);
                Expected::Again(number)
            }
            (Read::NoScript, _) => {
                let cause = self.unloaded.take().unwrap_or_else(out_of_step);
                return Ok(Some((number, Answer::Fault(cause))));
            }
            (Read::Refused | Read::OutOfStep, _) => return Err(out_of_step()),
        };
        self.expected.push_back(next);
        RedisSession::send(self, clock::now() + self.timeout)?;
        Ok(None)
    }
}
