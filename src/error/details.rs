//! Adds to an error what only a caller further up knows: the effort of an acquire, the limits of
//! nodes.

use std::time::Duration;

use crate::error::error::Error;
use crate::error::failed_node::ReplyLimit;
use crate::error::node_failure::NodeFailure;

impl Error {
    /// Replaces the attempts and the wait in an error of an exclusive lock's contention.
    pub(crate) fn with_effort(mut self, all_attempts: u32, whole_wait: Duration) -> Error {
        if let Error::Contended {
            attempts, waited, ..
        } = &mut self
        {
            (*attempts, *waited) = (all_attempts, whole_wait);
        }
        self
    }

    /// Adds the limits that nodes exceeded. `limit_of` returns the limit of a node by its name.
    pub(crate) fn with_limits(mut self, limit_of: impl Fn(&str) -> ReplyLimit) -> Error {
        if let Error::InsufficientQuorum { causes, .. } | Error::CircuitOpen { causes, .. } =
            &mut self
        {
            for cause in causes
                .iter_mut()
                .filter(|it| it.failure == NodeFailure::TimedOut)
            {
                cause.limit = Some(limit_of(&cause.node));
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::error::error::Error;
    use crate::error::failed_node::{FailedNode, ReplyLimit};
    use crate::error::node_failure::NodeFailure;
    use crate::error::operation::Operation;

    #[test]
    fn timed_out_node_names_the_limit_that_it_exceeded() {
        let ms = Duration::from_millis;
        let timed_out = |node: &str, cause| FailedNode {
            node: node.into(),
            failure: cause,
            limit: None,
        };
        let error = Error::InsufficientQuorum {
            operation: Operation::Connect,
            needed: 2,
            reachable: 0,
            total: 3,
            causes: Box::new([
                timed_out("a:1", NodeFailure::TimedOut),
                timed_out("b:2", NodeFailure::TimedOut),
                timed_out("c:3", NodeFailure::Unreachable("gone".into())),
            ]),
        };
        let error = error.with_limits(|node| match node {
            "a:1" => ReplyLimit::Node {
                node_timeout: ms(200),
                connecting: ms(264),
            },
            _ => ReplyLimit::Connect {
                connect_timeout: ms(1000),
            },
        });
        let text = error.to_string();
        let expected = ": a:1: no answer within 200 ms (node_timeout; connecting took 264 ms); \
                     b:2: no answer within 1000 ms (connect_timeout); c:3: unreachable: gone";
        assert!(text.ends_with(expected), "{text}");
        let open = Error::CircuitOpen {
            retry_in: Duration::from_secs(60),
            causes: Box::new([timed_out("a:1", NodeFailure::TimedOut)]),
        };
        let open = open.with_limits(|_| ReplyLimit::Node {
            node_timeout: ms(200),
            connecting: ms(1),
        });
        let text = open.to_string();
        let expected = "; a:1: no answer within 200 ms (node_timeout; connecting took 1 ms)";
        assert!(text.ends_with(expected), "{text}");
    }
}
