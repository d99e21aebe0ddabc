//! Counts the votes of a round, decides its verdict (S1, S6), and detects split votes (L1).
//!
//! Pure: no I/O, no clock.
//!
//! - The quorum is that of the configured nodes, whichever of them replied (S1).
//! - No verdict is returned that an outstanding vote could change.
//! - A node is counted once, by its first vote.
//!
//! Tests: below, such as `verdict_is_returned_exactly_when_no_vote_can_change_it`.

use std::time::Duration;

use crate::error::error::Error;
use crate::error::failed_node::FailedNode;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::protocol::node_set::NodeSet;

/// Returns the quorum of `total` *configured* nodes, whatever is reachable (S1). Two quorums share
/// a node.
pub(crate) fn majority(total: usize) -> usize {
    total / 2 + 1
}

/// The rule that says which votes give the verdict `Refused`.
///
/// With both rules, refusals that leave no quorum do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteRule {
    /// For an acquire: `Refused` also once a quorum has answered (granted or refused) and no quorum
    /// can grant any more.
    Acquire,
    /// For a lease that exists: nothing else, because a lock is not lost by nodes that are silent.
    Ownership,
}

/// One node's vote in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    /// The node granted.
    Granted,
    /// The node refused.
    Refused(NodeFailure),
    /// The node did not reply, or replied with an error. It counts as neither.
    Fault(NodeFailure),
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A quorum granted.
    Granted,
    /// Enough nodes refused, by the [`VoteRule`].
    Refused,
    /// All votes are in, and too few nodes granted or refused for either.
    Unavailable,
}

/// A split vote: some nodes granted, and the others may have granted to callers that asked at the
/// same moment, so perhaps no caller has a quorum (L1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// The nodes that refused, and may grant as soon as the other callers undo their attempts.
    pub(crate) contested: NodeSet,
    /// The lowest node that granted or is contested. The caller that it granted to leads.
    pub(crate) first: usize,
    /// Whether that node granted to this caller.
    pub(crate) leads: bool,
    /// Whether a node below `first` may have granted to another caller: it failed, has not voted,
    /// or its recent refusal is settled.
    pub(crate) is_doubtful: bool,
}

/// The votes of one round over all configured nodes.
#[derive(Debug)]
pub(crate) struct Tally {
    total: usize,
    rule: VoteRule,
    granted: NodeSet,
    refused: NodeSet,
    /// The nodes with any vote: granted, refused or failed.
    voted: NodeSet,
    /// The causes of the votes that are no grants, in the order of the votes.
    causes: Vec<(usize, NodeFailure)>,
    /// The earlier refusals of nodes that are asked again.
    former: Vec<(usize, NodeFailure)>,
}

impl Tally {
    pub(crate) fn new(total: usize, rule: VoteRule) -> Tally {
        Tally {
            total,
            rule,
            granted: NodeSet::default(),
            refused: NodeSet::default(),
            voted: NodeSet::default(),
            causes: Vec::new(),
            former: Vec::new(),
        }
    }

    /// Counts a vote. Further votes of the same node are dropped.
    pub(crate) fn vote(&mut self, node: usize, vote: Vote) {
        if self.voted.contains(node) {
            return;
        }
        self.voted.insert(node);
        match vote {
            Vote::Granted => self.granted.insert(node),
            Vote::Refused(cause) => {
                self.refused.insert(node);
                self.causes.push((node, cause));
            }
            Vote::Fault(cause) => self.causes.push((node, cause)),
        }
    }

    /// Returns the verdict as soon as no outstanding vote can change it; `Unavailable` only when
    /// all votes are in.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let open = self.outstanding();
        decide(
            self.rule,
            self.total,
            self.granted.len(),
            self.refused.len(),
            open,
        )
    }

    /// Returns the number of nodes that have not voted.
    pub(crate) fn outstanding(&self) -> usize {
        self.total - self.voted.len()
    }

    /// Returns the nodes that have not voted.
    pub(crate) fn open(&self) -> NodeSet {
        NodeSet::all(self.total).difference(self.voted)
    }

    /// Returns whether all nodes have voted.
    pub(crate) fn is_complete(&self) -> bool {
        self.outstanding() == 0
    }

    /// Counts outstanding votes as timed out, and returns the verdict.
    pub(crate) fn close_with_timeouts(&mut self) -> Verdict {
        for node in 0..self.total {
            self.vote(node, Vote::Fault(NodeFailure::TimedOut));
        }
        self.verdict().unwrap_or(Verdict::Unavailable)
    }

    /// Returns the split vote, if there is one. A node is contested if its refusal `is_recent` and
    /// it is not in `settled`, the nodes whose holder does not give way.
    ///
    /// Returns `None` if no node granted, if none is contested, or if the grants, the contested and
    /// the outstanding nodes are together fewer than a quorum.
    pub(crate) fn split(
        &self,
        is_recent: impl Fn(&NodeFailure) -> bool,
        settled: NodeSet,
    ) -> Option<Split> {
        let recent = self.recent(is_recent);
        let contested = recent.difference(settled);
        let first = self.granted.union(contested).first()?;
        let may_grant = self.granted.len() + contested.len() + self.outstanding();
        let is_split = self.granted.len() > 0 && contested.len() > 0;
        let lower = NodeSet::all(first);
        (is_split && may_grant >= majority(self.total)).then_some(Split {
            contested,
            first,
            leads: self.granted.contains(first),
            is_doubtful: lower.difference(self.refused.difference(recent)).len() > 0,
        })
    }

    /// Returns whether the vote may be split and the vote of a lower node than its first one is
    /// outstanding. If that node grants, it becomes the first node.
    pub(crate) fn lacks_first(&self, is_recent: impl Fn(&NodeFailure) -> bool) -> bool {
        let recent = self.recent(is_recent);
        let open = self.open();
        let first = self.granted.union(recent).first();
        recent.len() > 0 && open.first() < first && open.len() > 0
    }

    /// Returns the nodes whose refusal is recent.
    fn recent(&self, is_recent: impl Fn(&NodeFailure) -> bool) -> NodeSet {
        let mut recent = NodeSet::default();
        for (node, cause) in &self.causes {
            if self.refused.contains(*node) && is_recent(cause) {
                recent.insert(*node);
            }
        }
        recent
    }

    /// Counts nodes that refused as outstanding, because they are asked again.
    pub(crate) fn reopen(&mut self, nodes: NodeSet) {
        let again = self
            .causes
            .extract_if(.., |(node, _)| nodes.contains(*node));
        self.former.retain(|(node, _)| !nodes.contains(*node));
        self.former.extend(again);
        self.refused = self.refused.difference(nodes);
        self.voted = self.voted.difference(nodes);
    }

    /// Counts the earlier refusals of nodes that were asked again and have not voted since. Returns
    /// these nodes, because they may still grant.
    pub(crate) fn count_former_refusals(&mut self) -> NodeSet {
        let mut restored = NodeSet::default();
        for (node, cause) in std::mem::take(&mut self.former) {
            if !self.voted.contains(node) {
                restored.insert(node);
                self.vote(node, Vote::Refused(cause));
            }
        }
        restored
    }

    /// Returns the minimal number of further votes that can decide, so that a caller is not woken
    /// for fewer.
    pub(crate) fn min_votes_to_decide(&self) -> usize {
        let (granted, refused) = (self.granted.len(), self.refused.len());
        let open = self.outstanding();
        let decided = |granted, refused, open| {
            decide(self.rule, self.total, granted, refused, open).is_some()
        };
        // Among all distributions of `more` votes, a unanimous one decides soonest.
        (0..open)
            .find(|more| {
                decided(granted + more, refused, open - more)
                    || decided(granted, refused + more, open - more)
                    || decided(granted, refused, open - more)
            })
            .unwrap_or(open)
    }

    /// Returns the number of nodes that replied, also with an error, because such a node could
    /// serve another holder as well (S9). Nodes that are [`silent`](Tally::silent) do not count.
    pub(crate) fn replied(&self) -> usize {
        self.voted.len() - self.silent().count()
    }

    /// Returns whether fewer nodes than a quorum replied (S9).
    pub(crate) fn is_outage(&self) -> bool {
        self.replied() < majority(self.total)
    }

    /// Returns the nodes that serve nobody, with their failures: no reply, or an error such as
    /// LOADING ([`NodeFailure::is_outage`]).
    pub(crate) fn silent(&self) -> impl Iterator<Item = &(usize, NodeFailure)> {
        let fault = |(node, _): &&(usize, NodeFailure)| !self.refused.contains(*node);
        self.causes
            .iter()
            .filter(fault)
            .filter(|(_, cause)| cause.is_outage())
    }

    /// Returns whether the nodes that deny access leave no quorum, so that waiting does not help.
    pub(crate) fn is_denied(&self) -> bool {
        let denied =
            |(_, cause): &&(usize, NodeFailure)| matches!(cause, NodeFailure::AccessDenied(_));
        self.causes.iter().filter(denied).count() > self.total - majority(self.total)
    }

    /// Returns the number of nodes that granted or refused (S6).
    fn answered(&self) -> usize {
        self.granted.len() + self.refused.len()
    }

    /// Returns the causes of the nodes that refused or failed, in the order of their votes.
    pub(crate) fn causes(&self) -> &[(usize, NodeFailure)] {
        &self.causes
    }

    pub(crate) fn granted(&self) -> NodeSet {
        self.granted
    }

    pub(crate) fn refused(&self) -> NodeSet {
        self.refused
    }

    /// Returns whether most of the refusals name readers.
    pub(crate) fn held_by_readers(&self) -> bool {
        let readers =
            |(_, cause): &&(usize, NodeFailure)| matches!(cause, NodeFailure::HeldByReaders { .. });
        2 * self.causes.iter().filter(readers).count() > self.refused.len()
    }

    /// Returns the upper bound of grants: nodes that granted plus nodes that have not voted.
    pub(crate) fn possible_grants(&self) -> usize {
        self.granted.len() + self.total - self.voted.len()
    }

    /// Returns the other number of permits if the nodes that know another one leave no quorum.
    pub(crate) fn permit_count_mismatch(&self) -> Option<u32> {
        let others = self.causes.iter().filter_map(|(_, cause)| match cause {
            NodeFailure::PermitCountMismatch { permits } => Some(*permits),
            _ => None,
        });
        // Nodes may also differ from each other; any of their numbers explains the error.
        others
            .clone()
            .max()
            .filter(|_| others.count() > self.total - majority(self.total))
    }

    /// Returns the time until enough refusing nodes are free for a quorum, by their remaining TTLs.
    /// `None` if a needed TTL is unknown, or if the nodes that did not refuse are a quorum.
    pub(crate) fn free_in(&self) -> Option<Duration> {
        let mut holds: Vec<Option<Duration>> = self
            .causes
            .iter()
            .filter(|(node, _)| self.refused.contains(*node))
            .map(|(_, cause)| cause.remaining())
            .collect();
        // Locks without an end come last.
        holds.sort_by_key(|remaining| remaining.unwrap_or(Duration::MAX));
        let not_refusing = self.total - holds.len();
        let needed = majority(self.total).saturating_sub(not_refusing);
        match needed {
            0 => None,
            n => holds.get(n - 1).copied().flatten(),
        }
    }

    /// Returns the longest remaining time that a refusing node reports. `None` if one reports no
    /// end, or if no node refused.
    pub(crate) fn max_hold_left(&self) -> Option<Duration> {
        let refused = |(node, _): &&(usize, NodeFailure)| self.refused.contains(*node);
        let holds = self
            .causes
            .iter()
            .filter(refused)
            .map(|(_, cause)| cause.remaining());
        holds.max_by_key(|left| left.unwrap_or(Duration::MAX))?
    }

    /// Returns `InsufficientQuorum` with the failures; `name` returns a node's address.
    pub(crate) fn into_error(self, operation: Operation, name: impl Fn(usize) -> String) -> Error {
        let errors = self
            .causes
            .iter()
            .filter(|(node, cause)| cause.is_reply() && !self.refused.contains(*node));
        let reachable = self.answered() + errors.count();
        Error::InsufficientQuorum {
            operation,
            needed: majority(self.total),
            reachable,
            total: self.total,
            causes: self.named_causes(name),
        }
    }

    /// Returns the failures in the order of the nodes; `name` returns a node's address.
    pub(crate) fn named_causes(self, name: impl Fn(usize) -> String) -> Box<[FailedNode]> {
        let mut causes = self.causes;
        causes.sort_by_key(|(node, _)| *node);
        let named = |(node, cause)| FailedNode {
            node: name(node),
            failure: cause,
            limit: None,
        };
        causes.into_iter().map(named).collect()
    }
}

/// The decision table. `open` votes are outstanding; the rest of `total` failed.
fn decide(
    rule: VoteRule,
    total: usize,
    granted: usize,
    refused: usize,
    open: usize,
) -> Option<Verdict> {
    let quorum = majority(total);
    if granted >= quorum {
        return Some(Verdict::Granted);
    }
    // With an even total a tie is decided: neither side can reach a quorum.
    if refused > total - quorum {
        return Some(Verdict::Refused);
    }
    let can_win = granted + open >= quorum;
    match rule {
        VoteRule::Acquire if !can_win && granted + refused >= quorum => Some(Verdict::Refused),
        // Not before all votes are in, because the error names a failure per node.
        _ if open == 0 => Some(Verdict::Unavailable),
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HELD: NodeFailure = NodeFailure::Held { remaining: None };

    /// Returns all states of `total` votes: 0 outstanding, 1 granted, 2 refused, 3 failed.
    fn every_state(total: usize) -> impl Iterator<Item = Vec<u8>> {
        (0..4_usize.pow(total as u32)).map(move |mut code| {
            (0..total)
                .map(|_| {
                    let vote = (code % 4) as u8;
                    code /= 4;
                    vote
                })
                .collect()
        })
    }

    fn tally(rule: VoteRule, votes: &[u8]) -> Tally {
        let mut tally = Tally::new(votes.len(), rule);
        for (node, vote) in votes.iter().enumerate() {
            match vote {
                1 => tally.vote(node, Vote::Granted),
                2 => tally.vote(node, Vote::Refused(HELD)),
                3 => tally.vote(node, Vote::Fault(NodeFailure::TimedOut)),
                _ => {}
            }
        }
        tally
    }

    /// S6 by its text, for complete votes.
    fn final_verdict(rule: VoteRule, votes: &[u8]) -> Verdict {
        let count = |kind| votes.iter().filter(|vote| **vote == kind).count();
        let (granted, refused, majority) = (count(1), count(2), votes.len() / 2 + 1);
        let is_refused = match rule {
            VoteRule::Acquire => granted + refused >= majority || refused > votes.len() - majority,
            VoteRule::Ownership => refused > votes.len() - majority,
        };
        match granted >= majority {
            true => Verdict::Granted,
            false if is_refused => Verdict::Refused,
            false => Verdict::Unavailable,
        }
    }

    /// Returns all completions of the outstanding votes.
    fn completions(votes: &[u8]) -> Vec<Vec<u8>> {
        match votes.iter().position(|vote| *vote == 0) {
            None => vec![votes.to_vec()],
            Some(open) => (1..4)
                .flat_map(|vote| {
                    let mut next = votes.to_vec();
                    next[open] = vote;
                    completions(&next)
                })
                .collect(),
        }
    }

    #[test]
    fn majority_of_one_to_nine_nodes_is_more_than_half() {
        let quorums: Vec<_> = (1..=9).map(majority).collect();
        assert_eq!(quorums, [1, 2, 2, 3, 3, 4, 4, 5, 5]);
        let failing: Vec<_> = (1..=9).map(|n| n - majority(n) + 1).collect();
        assert_eq!(failing, [1, 1, 2, 2, 3, 3, 4, 4, 5]);
    }

    /// Returns all quorums of a list of nodes. The list and each quorum are the bits of a number.
    fn quorums(list: u32) -> impl Iterator<Item = u32> {
        let needed = majority(list.count_ones() as usize) as u32;
        (0..=list).filter(move |set| set & !list == 0 && set.count_ones() >= needed)
    }

    /// Returns whether each quorum of one list shares a node with each quorum of the other.
    fn always_meet(one: u32, other: u32) -> bool {
        quorums(one).all(|set| quorums(other).all(|also| set & also != 0))
    }

    #[test]
    fn quorums_of_n_and_of_one_more_node_share_a_node() {
        for n in 1..=9 {
            let list = (1 << n) - 1;
            assert!(always_meet(list, list), "{n} nodes");
            assert!(always_meet(list, list | 1 << n), "{n} nodes and one more");
        }
    }

    #[test]
    fn quorums_of_an_odd_list_need_not_meet_those_of_a_larger_change() {
        for n in [1, 3, 5, 7, 9] {
            let list = (1 << n) - 1;
            assert!(!always_meet(list, list | 0b11 << n), "two more than {n}");
            assert!(!always_meet(list, list << 1), "one of {n} replaced");
        }
    }

    #[test]
    fn verdict_is_returned_exactly_when_no_vote_can_change_it() {
        for rule in [VoteRule::Acquire, VoteRule::Ownership] {
            for votes in (1..=5).flat_map(every_state) {
                let ends: Vec<_> = completions(&votes)
                    .iter()
                    .map(|full| final_verdict(rule, full))
                    .collect();
                let settled = ends.iter().all(|end| *end == ends[0]);
                let all_in = !votes.contains(&0);
                let settled =
                    (settled && (all_in || ends[0] != Verdict::Unavailable)).then_some(ends[0]);
                let verdict = tally(rule, &votes).verdict();
                assert_eq!(verdict, settled, "{rule:?} {votes:?}");
            }
        }
    }

    #[test]
    fn tie_of_four_nodes_is_decided() {
        let verdict = tally(VoteRule::Acquire, &[1, 1, 2, 2]).verdict();
        assert_eq!(verdict, Some(Verdict::Refused));
        let early = tally(VoteRule::Acquire, &[0, 0, 2, 2]).verdict();
        assert_eq!(early, Some(Verdict::Refused));
        let mine = tally(VoteRule::Ownership, &[1, 1, 2, 2]).verdict();
        assert_eq!(mine, Some(Verdict::Refused));
    }

    #[test]
    fn min_votes_to_decide_equals_a_search() {
        for rule in [VoteRule::Acquire, VoteRule::Ownership] {
            for votes in (1..=5).flat_map(every_state) {
                let min_votes = tally(rule, &votes).min_votes_to_decide();
                let soonest = soonest(rule, &votes);
                assert_eq!(min_votes, soonest, "{rule:?} {votes:?}");
            }
        }
    }

    /// Searches the fewest further votes after which a verdict is possible.
    fn soonest(rule: VoteRule, votes: &[u8]) -> usize {
        let mut states = vec![votes.to_vec()];
        for more in 0.. {
            if states
                .iter()
                .any(|votes| tally(rule, votes).verdict().is_some())
            {
                return more;
            }
            states = states
                .iter()
                .filter_map(|votes| Some((votes, votes.iter().position(|vote| *vote == 0)?)))
                .flat_map(|(votes, open)| {
                    (1..4).map(move |vote| {
                        let mut next = votes.clone();
                        next[open] = vote;
                        next
                    })
                })
                .collect();
        }
        unreachable!("a full tally has a verdict")
    }

    #[test]
    fn closing_counts_outstanding_votes_as_failed() {
        for rule in [VoteRule::Acquire, VoteRule::Ownership] {
            for votes in (1..=5).flat_map(every_state) {
                let silent: Vec<_> = votes.iter().map(|v| if *v == 0 { 3 } else { *v }).collect();
                let closed = tally(rule, &votes).close_with_timeouts();
                assert_eq!(closed, final_verdict(rule, &silent), "{votes:?}");
            }
        }
    }

    #[test]
    fn second_vote_of_a_node_does_not_count() {
        let mut tally = Tally::new(3, VoteRule::Acquire);
        for _ in 0..3 {
            tally.vote(1, Vote::Granted);
        }
        assert_eq!(tally.verdict(), None);
        assert_eq!(tally.granted().len(), 1);
    }

    #[test]
    fn lock_is_free_when_enough_holders_have_expired() {
        let ms = Duration::from_millis;
        type Row<'a> = (usize, &'a [Option<u64>], Option<u64>);
        let table: [Row<'_>; 6] = [
            (1, &[Some(70)], Some(70)),
            (3, &[Some(70), Some(30)], Some(30)),
            (3, &[Some(70), Some(30), Some(50)], Some(50)),
            (3, &[Some(70), None, None], None),
            (3, &[Some(70)], None),
            (5, &[None, None, None, Some(9)], None),
        ];
        for (total, holds, expected) in table {
            let mut tally = Tally::new(total, VoteRule::Acquire);
            for (node, hold) in holds.iter().enumerate() {
                let remaining = hold.map(ms);
                tally.vote(node, Vote::Refused(NodeFailure::Held { remaining }));
            }
            assert_eq!(tally.free_in(), expected.map(ms), "{total} {holds:?}");
        }
    }

    #[test]
    fn error_reply_counts_as_replied() {
        let granted = || Vote::Granted;
        let held = || Vote::Refused(HELD);
        let error = || Vote::Fault(NodeFailure::ServerError("OOM".into()));
        let denied = || Vote::Fault(NodeFailure::AccessDenied("NOPERM".into()));
        let silent = || Vote::Fault(NodeFailure::TimedOut);
        for (votes, replied, is_denied) in [
            (vec![], 0, false),
            (vec![granted()], 1, false),
            (vec![granted(), silent(), silent()], 1, false),
            (vec![silent(), error(), error()], 2, false),
            (vec![held(), error(), silent()], 2, false),
            (vec![held(), denied(), silent()], 2, false),
            (vec![silent(), denied(), denied()], 2, true),
            (vec![granted(), denied(), denied()], 3, true),
            (vec![silent(), silent(), denied()], 1, false),
        ] {
            let mut tally = Tally::new(3, VoteRule::Acquire);
            for (node, vote) in votes.iter().enumerate() {
                tally.vote(node, vote.clone());
            }
            assert_eq!(tally.replied(), replied, "{votes:?}");
            assert_eq!(tally.is_outage(), replied < 2, "{votes:?}");
            assert_eq!(tally.is_denied(), is_denied, "{votes:?}");
        }
    }

    #[test]
    fn error_counts_nodes_that_replied_with_errors_as_reachable() {
        let oom = || Vote::Fault(NodeFailure::ServerError("OOM".into()));
        for (votes, operation, expected) in [
            ([Vote::Granted, oom(), oom()], Operation::Acquire, (1, 3)),
            (
                [
                    Vote::Granted,
                    Vote::Refused(NodeFailure::NotOurs),
                    Vote::Fault(NodeFailure::TimedOut),
                ],
                Operation::Release,
                (1, 2),
            ),
            (
                [
                    Vote::Refused(NodeFailure::WrongType),
                    oom(),
                    Vote::Fault(NodeFailure::TimedOut),
                ],
                Operation::Inspect,
                (1, 2),
            ),
        ] {
            let mut tally = Tally::new(3, VoteRule::Ownership);
            for (node, vote) in votes.into_iter().enumerate() {
                tally.vote(node, vote);
            }
            let error = tally.into_error(operation, |node| format!("n{node}"));
            let text = error.to_string();
            let Error::InsufficientQuorum { reachable, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(reachable, expected.1, "{text}");
            let done = format!("{operation} {} of 3 nodes", expected.0);
            assert!(text.contains(&done), "{text}");
        }
    }

    #[test]
    fn error_names_the_failures_in_the_order_of_nodes() {
        let mut tally = Tally::new(3, VoteRule::Acquire);
        tally.vote(2, Vote::Fault(NodeFailure::TimedOut));
        tally.vote(0, Vote::Refused(HELD));
        tally.close_with_timeouts();
        let Error::InsufficientQuorum {
            needed,
            reachable,
            total,
            causes,
            ..
        } = tally.into_error(Operation::Acquire, |node| format!("n{node}"))
        else {
            panic!("another error")
        };
        assert_eq!((needed, reachable, total), (2, 1, 3));
        let names: Vec<_> = causes.iter().map(|cause| &cause.node).collect();
        assert_eq!(names, ["n0", "n1", "n2"]);
    }

    #[test]
    fn split_vote_is_told_from_a_held_lock() {
        // Per node: g granted, r refused recently, h refused by an old holder, f failed, .
        // outstanding. Expected: contested, first, leads, is_doubtful.
        type Row<'a> = (
            &'a str,
            &'a [usize],
            Option<(&'a [usize], usize, bool, bool)>,
        );
        let table: [Row<'_>; 17] = [
            ("grr", &[], Some((&[1, 2], 0, true, false))),
            ("rgr", &[], Some((&[0, 2], 0, false, false))),
            ("rrg", &[], Some((&[0, 1], 0, false, false))),
            ("rrr", &[], None),
            ("hhg", &[], None),
            ("ghh", &[], None),
            ("hrg", &[], Some((&[1], 1, false, false))),
            ("hgr", &[], Some((&[2], 1, true, false))),
            ("fgr", &[], Some((&[2], 1, true, true))),
            ("gfr", &[], Some((&[2], 0, true, false))),
            ("rgr", &[0], Some((&[2], 1, true, true))),
            ("rrg", &[0, 1], None),
            ("ffg", &[], None),
            ("ggrrr", &[], Some((&[2, 3, 4], 0, true, false))),
            ("hggrr", &[], Some((&[3, 4], 1, true, false))),
            ("hhhgr", &[], None),
            ("rr..g", &[], Some((&[0, 1], 0, false, false))),
        ];
        let set = |nodes: &[usize]| {
            let mut set = NodeSet::default();
            nodes.iter().for_each(|node| set.insert(*node));
            set
        };
        let old = NodeFailure::NotOurs;
        for (votes, settled, expected) in table {
            let mut tally = Tally::new(votes.len(), VoteRule::Acquire);
            for (node, vote) in votes.chars().enumerate() {
                match vote {
                    'g' => tally.vote(node, Vote::Granted),
                    'r' => tally.vote(node, Vote::Refused(HELD)),
                    'h' => tally.vote(node, Vote::Refused(old.clone())),
                    'f' => tally.vote(node, Vote::Fault(NodeFailure::TimedOut)),
                    _ => {}
                }
            }
            let split = tally.split(|cause| *cause == HELD, set(settled));
            let expected = expected.map(|(contested, first, leads, is_doubtful)| Split {
                contested: set(contested),
                first,
                leads,
                is_doubtful,
            });
            assert_eq!(split, expected, "{votes} {settled:?}");
        }
    }

    #[test]
    fn refusals_that_are_asked_again_count_as_outstanding_until_their_refusals_count() {
        let mut tally = tally(VoteRule::Acquire, &[1, 2, 2]);
        assert_eq!(tally.verdict(), Some(Verdict::Refused));
        let contested = NodeSet::all(3).difference(NodeSet::single(0));
        tally.reopen(contested);
        assert_eq!((tally.verdict(), tally.outstanding()), (None, 2));
        tally.vote(1, Vote::Refused(HELD));
        tally.reopen(NodeSet::single(1));
        assert_eq!(tally.count_former_refusals(), contested);
        assert_eq!(tally.verdict(), Some(Verdict::Refused));
        assert_eq!(tally.causes().len(), 2);
        tally.reopen(contested);
        tally.vote(1, Vote::Granted);
        assert_eq!(tally.verdict(), Some(Verdict::Granted));
        assert_eq!(tally.count_former_refusals(), NodeSet::single(2));
    }
}
