//! What operators may do with other people's locks: look who holds one, and take it away.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::core::Engine;
use crate::error::{Error, Operation};
use crate::protocol::holder::{Holder, Sight, holder};
use crate::protocol::key::Key;
use crate::protocol::kind::Claim;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::quorum;
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::Addressee;
use crate::transport::round::Outcome;

impl Engine {
    /// Who holds an exclusive lock. Blocks until all nodes that are connected have answered, for `node_timeout` at most.
    pub(crate) fn holder(&self, key: Key) -> Result<Option<Holder>, Error> {
        let told = self.of_all(key, Verb::Tell)?;
        let sights = told.into_iter().filter_map(|answer| match answer {
            Answer::Seen(sight) => Some(*sight),
            _ => None,
        });
        let sights: Vec<Sight> = sights.collect();
        Ok(holder(&sights, quorum(self.nodes.total())))
    }

    /// Deletes an exclusive lock on all nodes, whoever holds it. `true` if one of them had it. Blocks likewise.
    pub(crate) fn force_release(&self, key: Key) -> Result<bool, Error> {
        let told = self.of_all(key, Verb::Break)?;
        let deleted = |answer: &Answer| matches!(answer, Answer::Yes | Answer::Heard(_));
        Ok(told.iter().any(deleted))
    }

    /// What all nodes say to one question about a key, of whom a quorum must answer.
    fn of_all(&self, key: Key, verb: Verb) -> Result<Vec<Answer>, Error> {
        if self.is_forked() || self.gate.is_closed() {
            return Err(Error::Closed);
        }
        // Never held: a request needs one to say whose key it is about.
        let lease = Arc::new(Lease::new(key, Token::local(), Claim::Exclusive));
        let mut request = Request::new(verb, &lease, 0);
        request.publish = true;
        let inbox = Arc::new(Inbox::new());
        let hearer = Arc::new(Hearer {
            inbox: Arc::clone(&inbox),
            answers: Mutex::default(),
        });
        let addressee = Arc::clone(&hearer) as Arc<dyn Addressee>;
        let round = self.nodes.ask_for(&request, &inbox, addressee);
        let Outcome { tally, .. } = round.of_all(self.node_budget(clock::now()));
        if tally.granted().len() + tally.refused().len() < quorum(self.nodes.total()) {
            return Err(self.insufficient(Operation::Inspect, tally));
        }
        Ok(std::mem::take(&mut *hearer.answers.lock()))
    }
}

/// Keeps what nodes say, besides how they vote.
struct Hearer {
    inbox: Arc<Inbox>,
    answers: Mutex<Vec<Answer>>,
}

impl Addressee for Hearer {
    fn post(&self, round: u32, node: usize, answer: Answer) {
        self.answers.lock().push(answer.clone());
        self.inbox.post(round, node, answer);
    }
}
