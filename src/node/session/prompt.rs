//! Requests that are sent one by one, whose replies are looked for.

use std::collections::VecDeque;
use std::time::Instant;

use redis::Value;

use crate::error::Cause;
use crate::node::session::{RedisSession, is_digest, out_of_step};
use crate::node::{Flight, Prompt};
use crate::script::{self, Answer, Loaded, Read};
use crate::time;

/// What a reply is, of one that was sent by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// That to the request with this number.
    Whole(u64),
    /// For how long the lock is held that it was refused.
    Left(u64),
    /// The SHA-1 of a script that the server had forgotten.
    Script(usize),
    /// That to the request with this number, which was sent again after the scripts.
    Again(u64),
}

impl Prompt for RedisSession {
    fn is_in_order(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.all(|one| matches!(one, Expected::Whole(_)))
    }

    fn send(&mut self, number: u64, request: &script::Request) -> Result<(), Cause> {
        self.expected.push_back(Expected::Whole(number));
        self.out.clear();
        let (cmd, out) = (&mut self.cmd, &mut self.out);
        self.loaded.write(request, std::iter::empty(), cmd, out);
        RedisSession::send(self, time::now() + self.timeout)
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
            .map_err(|error| script::cause_without(&error, &self.password))
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
            self.learn(expected, reply)?;
            return Ok(None);
        };
        let flight = flights.iter().find(|flight| flight.number == number);
        let request = &flight.ok_or_else(out_of_step)?.request;
        if let Expected::Left(_) = expected {
            let held = script::read_left(reply).ok_or_else(out_of_step)?;
            return Ok(Some((number, held)));
        }
        self.out.clear();
        let next = match (script::read(request, 0, reply), expected) {
            (Read::Answer(answer), _) => return Ok(Some((number, answer))),
            (Read::Refused, Expected::Whole(_)) => {
                script::write_left(request, &mut self.cmd, &mut self.out);
                Expected::Left(number)
            }
            (Read::NoScript, Expected::Whole(_)) => {
                Loaded::load(&mut self.out);
                let scripts = (0..Loaded::COUNT).map(Expected::Script);
                self.expected.extend(scripts);
                Expected::Again(number)
            }
            (Read::NoScript, _) => {
                let cause = Cause::Server("NOSCRIPT after SCRIPT LOAD".into());
                return Ok(Some((number, Answer::Fault(cause))));
            }
            (Read::Refused | Read::OutOfStep, _) => return Err(out_of_step()),
        };
        if let Expected::Again(_) = next {
            let (cmd, out) = (&mut self.cmd, &mut self.out);
            self.loaded.write(request, std::iter::empty(), cmd, out);
        }
        self.expected.push_back(next);
        RedisSession::send(self, time::now() + self.timeout)?;
        Ok(None)
    }

    fn learn(&mut self, expected: Expected, reply: &Value) -> Result<(), Cause> {
        let (Expected::Script(script), Value::BulkString(sha)) = (expected, reply) else {
            return Err(out_of_step());
        };
        let sha = String::from_utf8_lossy(sha);
        if !is_digest(&sha) {
            return Err(out_of_step());
        }
        self.loaded.learn(script, sha.into_owned());
        Ok(())
    }
}
