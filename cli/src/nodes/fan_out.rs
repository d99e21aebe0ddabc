//! Requests to all nodes at once.

use std::fmt;
use std::thread;

use redis::{Connection, RedisResult};

use crate::config::Settings;
use crate::failure::{Failure, Kind, Result};
use crate::nodes::connection::{self, NodeConnection, Trouble};

/// All nodes, with a connection each.
pub(crate) struct Nodes {
    nodes: Vec<NodeConnection>,
}

/// A node that did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) node: String,
    pub(crate) cause: String,
    pub(crate) trouble: Trouble,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.cause)
    }
}

/// The answers of the nodes: of each server one, in the order of the nodes.
pub(crate) struct Answers<T> {
    /// By node; `None` if it is absent.
    pub(crate) by_node: Vec<Option<Vec<T>>>,
    pub(crate) absent: Vec<Absent>,
}

impl Nodes {
    pub(crate) fn new(settings: &Settings) -> Result<Nodes> {
        let nodes = settings.nodes.iter();
        let nodes = nodes.map(|spec| NodeConnection::new(spec, settings));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        Ok(Nodes { nodes })
    }

    pub(crate) fn total(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// Asks all servers of all nodes at once. Blocks until the slowest has answered, at most for
    /// the limits of a connect and of each reply.
    pub(crate) fn ask<T: Send>(
        &mut self,
        request: impl Fn(&mut Connection) -> RedisResult<T> + Sync,
    ) -> Answers<T> {
        let request = &request;
        let mut answers = Answers {
            by_node: Vec::new(),
            absent: Vec::new(),
        };
        thread::scope(|scope| {
            let asked: Vec<_> = self
                .nodes
                .iter_mut()
                .map(|node| {
                    let name = node.name.clone();
                    (name, scope.spawn(move || node.ask(request)))
                })
                .collect();
            for (node, thread) in asked {
                answers.by_node.push(match thread.join() {
                    Ok(Ok(told)) => Some(told),
                    Ok(Err(error)) => {
                        answers.absent.push(Absent {
                            node,
                            cause: connection::describe(&error),
                            trouble: Trouble::of(&error),
                        });
                        None
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                });
            }
        });
        answers
    }

    /// Returns the failure of a command for which too few nodes answered: each held lock is on one
    /// of a quorum, so the nodes that did not answer must be fewer than one.
    ///
    /// # Errors
    /// `Denied` if the nodes that deny access are enough for the failure, else `Unavailable`.
    pub(crate) fn require_quorum(&self, absent: &[Absent]) -> Result<()> {
        let total = self.total();
        let (answered, needed) = (total - absent.len(), total / 2 + 1);
        if answered >= needed {
            return Ok(());
        }
        let denied = absent.iter().filter(|absent| absent.trouble.is_denied());
        let denied = denied.count();
        let kind = if denied > total - needed {
            Kind::Denied
        } else {
            Kind::Unavailable
        };
        let causes: Vec<_> = absent.iter().map(Absent::to_string).collect();
        let line = format!(
            "no quorum: answered by {answered} of {total} nodes, {needed} are needed ({})",
            causes.join("; ")
        );
        Err(Failure::new(kind, line))
    }
}
