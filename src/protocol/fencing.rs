//! Fencing tokens: from the numbers that the nodes gave with their grants to one that all later holders exceed.
//!
//! Each node counts by itself; nodes that granted what others refused are ahead of them. Two quorums share a node, so of
//! the numbers that a quorum gives, counted from the smallest, the q-th is above every former holder's token, if q nodes
//! were as high as that when it was given out. This is what the second round is for, where it takes one (rule S12).

/// What follows from the numbers of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FencingOutcome {
    /// A quorum of the nodes is as high as this already: it is the token.
    Agreed(u64),
    /// It is the token when a quorum of the nodes has been raised to it.
    Raise(u64),
}

/// Reads the numbers that at least `quorum` nodes gave; fewer are no grant, and have no answer.
pub(crate) fn choose_token(mut numbers: Vec<u64>, quorum: usize) -> Option<FencingOutcome> {
    numbers.sort_unstable();
    let token = *numbers.get(quorum.checked_sub(1)?)?;
    let as_high = numbers.iter().filter(|number| **number >= token).count();
    match (as_high >= quorum, numbers.last()) {
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
    fn nodes_in_step_agree_at_once_and_others_do_not() {
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

    /// What happens to the nodes' counters from one holder to the next.
    #[derive(Clone, Debug)]
    struct Turn {
        /// The order in which the nodes grant; so many of them beyond a quorum are in hand in time.
        order: Vec<usize>,
        beyond: usize,
        /// Nodes that count up for an attempt that is lost.
        lost_attempt: Vec<bool>,
        /// Nodes that lose their data, of which at most q − 1 do.
        forget: Vec<bool>,
    }

    fn turns() -> impl Strategy<Value = (usize, Vec<Turn>)> {
        (1..6_usize).prop_flat_map(|nodes| {
            let turn = (
                Just((0..nodes).collect::<Vec<_>>()).prop_shuffle(),
                0..3_usize,
                proptest::collection::vec(any::<bool>(), nodes),
                proptest::collection::vec(any::<bool>(), nodes),
            );
            let turn = turn.prop_map(|(order, beyond, lost_attempt, forget)| Turn {
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
        fn tokens_strictly_increase((nodes, turns) in turns()) {
            let quorum = majority(nodes);
            // Servers' clocks in µs, in step; a node that forgot starts from there.
            let mut clock = 1_000_000_u64;
            let mut counters = vec![None; nodes];
            let mut last = 0;
            for turn in turns {
                clock += 1_000;
                let next = |counter: &mut Option<u64>| -> u64 {
                    let number = counter.unwrap_or(clock) + 1;
                    *counter = Some(number);
                    number
                };
                let forgetful = (0..nodes).filter(|node| turn.forget[*node]).take(quorum - 1);
                forgetful.for_each(|node| counters[node] = None);
                for node in (0..nodes).filter(|node| turn.lost_attempt[*node]) {
                    next(&mut counters[node]);
                }
                let in_hand = (quorum + turn.beyond).min(nodes);
                let granted = &turn.order[..in_hand];
                let numbers = granted.iter().map(|node| next(&mut counters[*node])).collect();
                let token = match choose_token(numbers, quorum) {
                    Some(FencingOutcome::Agreed(token)) => token,
                    Some(FencingOutcome::Raise(token)) => {
                        // Only as many as must be.
                        for node in &turn.order[..quorum] {
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
