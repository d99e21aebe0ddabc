//! Requests that are sent one by one, whose replies are looked for.

use std::collections::VecDeque;
use std::time::Instant;

use redis::Value;

use crate::error::Cause;
use crate::protocol::request;
use crate::protocol::request::{Answer, Read};
use crate::time::clock;
use crate::transport::node::session::{RedisSession, out_of_step};
use crate::transport::node::traits::{Flight, Prompt};

/// What a reply is, of one that was sent by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// That to the request with this number.
    Whole(u64),
    /// For how long the lock is held that it was refused.
    Left(u64),
    /// That to the loading of a script that the server did not have.
    Script,
    /// That to the request with this number, which was sent again after its script.
    Again(u64),
}

impl Prompt for RedisSession {
    fn is_in_order(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.all(|one| matches!(one, Expected::Whole(_)))
    }

    fn send(&mut self, number: u64, bytes: &[u8]) -> Result<(), Cause> {
        self.expected.push_back(Expected::Whole(number));
        let cause = |error| request::cause_without(&error, &self.password);
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
            .map_err(|error| request::cause_without(&error, &self.password))
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
            self.unloaded = Some(request::unloaded(reply));
            return Ok(None);
        };
        let flight = flights.iter().find(|flight| flight.number == number);
        let request = &flight.ok_or_else(out_of_step)?.request;
        if let Expected::Left(_) = expected {
            let held = request::read_left(reply).ok_or_else(out_of_step)?;
            return Ok(Some((number, held)));
        }
        self.out.clear();
        let next = match (request::read(request, 0, reply), expected) {
            (Read::Answer(answer), _) => return Ok(Some((number, answer))),
            (Read::Refused, Expected::Whole(_)) => {
                request::write_left(request, &mut self.cmd, &mut self.out);
                Expected::Left(number)
            }
            (Read::NoScript, Expected::Whole(_)) => {
                let (cmd, out) = (&mut self.cmd, &mut self.out);
                request::write_with_script(request, std::iter::empty(), cmd, out);
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
