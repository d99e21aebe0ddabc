//! Where answers go, and the releases that are owed to a node: kept over a broken connection until the node is back, or
//! their keys cannot exist any more (rule S4).

use std::sync::atomic::Ordering;

use crate::desk::sent::note_unanswered;
use crate::desk::{BATCH, Desk};
use crate::error::Cause;
use crate::job::{Job, Reply};
use crate::observer::NodeReply;
use crate::script::{Answer, Request, Verb};
use crate::time;

/// A release that is owed to the node.
pub(super) type Owed = (Request, Return);

/// Where the answer to a request goes.
pub(super) struct Return {
    /// As in [`Job::reply`].
    to: Option<Reply>,
    /// It is a release that was on the wire when a connection broke, and may have taken effect then; or one that another may
    /// have made before.
    pub(super) again: bool,
    /// It has no answer yet, or as a release one that says that it did not take effect.
    pub(super) owed: bool,
}

impl Return {
    pub(super) fn new(to: Option<Reply>) -> Return {
        Return {
            to,
            again: false,
            owed: true,
        }
    }

    pub(super) fn post(&mut self, node: usize, answer: Answer) {
        if let Some((addressee, round)) = self.to.take() {
            // Absent after a release whose answer was lost: it was that release that deleted the key.
            let answer = match answer {
                Answer::Absent if self.again => Answer::Yes,
                answer => answer,
            };
            addressee.post(round, node, answer);
        }
    }
}

impl Desk {
    /// The connection broke, or is given up: what is open is unknown to its callers, and the releases that did not take effect
    /// for certain are owed.
    pub(super) fn break_off(&mut self, cause: &Cause) {
        self.session = None;
        self.broken = None;
        self.health.overdue.store(u64::MAX, Ordering::Release);
        let (now, flights) = (time::now(), std::mem::take(&mut self.flights));
        let backs = std::mem::take(&mut self.backs);
        for (flight, (back, sent)) in flights.into_iter().zip(backs) {
            if back.owed {
                self.note(NodeReply::Unknown, now.saturating_duration_since(sent));
            }
            self.give_up(flight.request, back, cause);
        }
    }

    /// The lane goes down: nothing is left on the wire of what connection there was.
    pub(crate) fn close(&mut self, cause: &Cause) {
        self.break_off(cause);
        let (requests, returns) = (self.requests.drain(..), self.returns.drain(..));
        let batch: Vec<_> = requests.zip(returns).collect();
        for (request, back) in batch {
            self.give_up(request, back, cause);
        }
    }

    /// It was on the wire when the connection broke.
    pub(super) fn give_up(&mut self, request: Request, mut back: Return, cause: &Cause) {
        match request.verb {
            Verb::Release if back.owed => {
                back.again = true;
                self.owed.push_back((request, back));
            }
            _ => {
                if back.owed {
                    note_unanswered(&request);
                }
                back.post(self.node, Answer::Fault(cause.clone()));
            }
        }
    }

    /// Makes the releases that are owed.
    pub(super) fn pay(&mut self) -> Result<(), Cause> {
        self.forget_what_expired();
        while !self.owed.is_empty() {
            let some = self.owed.len().min(BATCH);
            for (request, back) in self.owed.drain(..some) {
                self.requests.push(request);
                self.returns.push(back);
            }
            self.exchange()?;
        }
        Ok(())
    }

    /// Drops the releases whose key cannot exist any more, so that a node which is down for hours collects nothing.
    fn forget_what_expired(&mut self) {
        let (now, node) = (time::now(), self.node);
        self.owed.retain_mut(|(request, back)| {
            let keep = request.lease.may_exist(now);
            if !keep {
                back.post(node, Answer::Absent);
            }
            keep
        });
    }

    /// A job for a node that does not answer: releases are owed, everything else was not sent.
    pub(crate) fn refuse(&mut self, job: Job) {
        let mut back = Return::new(job.reply);
        if job.request.verb == Verb::Release {
            self.owed.push_back((job.request, back));
        } else {
            let cause = self.cause();
            back.post(self.node, Answer::Fault(cause));
        }
    }

    /// Answers those who wait for an owed release; the releases stay owed.
    pub(crate) fn give_up_waiting(&mut self) {
        self.forget_what_expired();
        let cause = self.cause();
        for (_, back) in &mut self.owed {
            back.post(self.node, Answer::Fault(cause.clone()));
        }
    }
}
