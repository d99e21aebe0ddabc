//! Chooses a fencing token from the fence counters of the nodes that granted (S12).
//!
//! Each node increments its own counter, and nodes that granted more attempts are ahead. Two
//! quorums share a node. So the q-th smallest counter of a quorum exceeds every earlier token, if q
//! counters had reached that token when it was returned. Otherwise a second round raises a quorum
//! first.

/// The decision on the counters of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FencingOutcome {
    /// A quorum of counters has reached this fencing token.
    Agreed(u64),
    /// The fencing token, once a quorum of counters is raised to it.
    Raise(u64),
}

/// Chooses the fencing token from the counters of the granting nodes; `None` if they are fewer than
/// `quorum`.
pub(crate) fn choose_token(mut counters: Vec<u64>, quorum: usize) -> Option<FencingOutcome> {
    counters.sort_unstable();
    let token = *counters.get(quorum.checked_sub(1)?)?;
    let reached = counters.iter().filter(|counter| **counter >= token).count();
    match (reached >= quorum, counters.last()) {
        (true, _) => Some(FencingOutcome::Agreed(token)),
        (false, last) => last.map(|greatest| FencingOutcome::Raise(*greatest)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::quorum::majority;

    #[test]
    fn token_is_agreed_if_a_quorum_of_counters_reached_it() {
        for (numbers, quorum, expected) in [
            (vec![], 1, None),
            (vec![7], 1, Some(FencingOutcome::Agreed(7))),
            (vec![7], 2, None),
            (vec![7, 7], 2, Some(FencingOutcome::Agreed(7))),
            (vec![7, 9], 2, Some(FencingOutcome::Raise(9))),
            (vec![9, 9, 4], 2, Some(FencingOutcome::Agreed(9))),
            (vec![9, 4, 4], 2, Some(FencingOutcome::Agreed(4))),
            (vec![9, 7, 4], 2, Some(FencingOutcome::Agreed(7))),
            (vec![8, 9, 4], 3, Some(FencingOutcome::Raise(9))),
            (vec![8, 9, 4, 8, 9], 3, Some(FencingOutcome::Agreed(8))),
            (vec![9, 9, 9, 4, 5], 3, Some(FencingOutcome::Agreed(9))),
        ] {
            assert_eq!(
                choose_token(numbers.clone(), quorum),
                expected,
                "{numbers:?}"
            );
        }
    }

    /// The changes of the counters from one holder to the next.
    #[derive(Clone, Debug)]
    struct Step {
        /// The order in which the nodes grant, and how many grants beyond a quorum arrive in time.
        order: Vec<usize>,
        beyond: usize,
        /// Nodes that increment their counter for a refused attempt.
        lost_attempt: Vec<bool>,
        /// Nodes that lose their data; at most q − 1 do.
        forget: Vec<bool>,
    }

    fn steps() -> impl Strategy<Value = (usize, Vec<Step>)> {
        (1..6_usize).prop_flat_map(|nodes| {
            let turn = (
                Just((0..nodes).collect::<Vec<_>>()).prop_shuffle(),
                0..3_usize,
                proptest::collection::vec(any::<bool>(), nodes),
                proptest::collection::vec(any::<bool>(), nodes),
            );
            let turn = turn.prop_map(|(order, beyond, lost_attempt, forget)| Step {
                order,
                beyond,
                lost_attempt,
                forget,
            });
            (Just(nodes), proptest::collection::vec(turn, 1..30))
        })
    }

    proptest! {
        #[test]
        fn tokens_strictly_increase((nodes, steps) in steps()) {
            let quorum = majority(nodes);
            // The servers' clock in µs; a node without its data starts counting there.
            let mut clock = 1_000_000_u64;
            let mut counters = vec![None; nodes];
            let mut last = 0;
            for step in steps {
                clock += 1_000;
                let next = |counter: &mut Option<u64>| -> u64 {
                    let next = counter.unwrap_or(clock) + 1;
                    *counter = Some(next);
                    next
                };
                let forgetful = (0..nodes).filter(|node| step.forget[*node]).take(quorum - 1);
                forgetful.for_each(|node| counters[node] = None);
                for node in (0..nodes).filter(|node| step.lost_attempt[*node]) {
                    next(&mut counters[node]);
                }
                let grants = (quorum + step.beyond).min(nodes);
                let granted = &step.order[..grants];
                let counts = granted.iter().map(|node| next(&mut counters[*node])).collect();
                let token = match choose_token(counts, quorum) {
                    Some(FencingOutcome::Agreed(token)) => token,
                    Some(FencingOutcome::Raise(token)) => {
                        // No more than a quorum.
                        for node in &step.order[..quorum] {
                            counters[*node] = counters[*node].max(Some(token));
                        }
                        token
                    }
                    None => unreachable!("a quorum granted"),
                };
                prop_assert!(token > last, "{token} after {last}");
                last = token;
            }
        }
    }
}
