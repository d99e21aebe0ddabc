//! Which requests of a batch travel as one call: readers of one key that come, or leave, together.

use crate::protocol::request::Request;

/// So many calls back a request looks for one that it can join.
const JOIN_LOOKBACK: usize = 8;

/// The calls of a batch. Kept from one batch to the next for its memory.
#[derive(Debug, Default)]
pub(crate) struct BatchPlan {
    /// The first and the last request of each call.
    groups: Vec<(usize, usize)>,
    /// For each request the next one of its call, or itself.
    next: Vec<usize>,
}

impl BatchPlan {
    /// Makes a plan for a batch. What matters of its order is kept.
    pub(crate) fn plan(&mut self, requests: &[Request]) {
        self.groups.clear();
        self.next.clear();
        for (index, request) in requests.iter().enumerate() {
            self.next.push(index);
            match self.joinable_group(requests, request) {
                Some(call) => {
                    let last = std::mem::replace(&mut self.groups[call].1, index);
                    self.next[last] = index;
                }
                None => self.groups.push((index, index)),
            }
        }
    }

    /// The call that a request can join without passing one that it must not pass.
    fn joinable_group(&self, requests: &[Request], request: &Request) -> Option<usize> {
        if !request.is_commutative_read() {
            return None;
        }
        for (call, (first, _)) in self.groups.iter().enumerate().rev().take(JOIN_LOOKBACK) {
            let other = &requests[*first];
            if request.can_join(other) {
                return Some(call);
            }
            if !other.is_commutative_read() && other.lease.key() == request.lease.key() {
                return None; // a writer, for example: who comes after it stays after it
            }
        }
        None
    }

    /// The first request of each call, in order.
    pub(crate) fn group_leaders(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().map(|(first, _)| *first)
    }

    /// The requests of a call, given by its first one.
    pub(crate) fn group_members(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(first), |index| {
            Some(self.next[*index]).filter(|next| next != index)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::kind::LeaseKind;
    use crate::protocol::lease::tests::lease_as;
    use crate::protocol::request::Op;

    fn request(verb: Op, claim: LeaseKind, name: &str) -> Request {
        Request::new(verb, &lease_as(name, claim), 30)
    }

    fn plan(requests: &[Request]) -> Vec<Vec<usize>> {
        let mut calls = BatchPlan::default();
        calls.plan(&requests[..1]);
        calls.plan(requests);
        calls
            .group_leaders()
            .map(|first| calls.group_members(first).collect())
            .collect()
    }

    #[test]
    fn readers_of_one_key_come_together_and_leave_together() {
        let come = |name| request(Op::Acquire, LeaseKind::Read, name);
        let leave = |name| request(Op::Release, LeaseKind::Read, name);
        let batch = [
            come("x"),
            leave("x"),
            come("y"),
            come("x"),
            leave("x"),
            leave("x"),
            come("y"),
        ];
        assert_eq!(plan(&batch), [vec![0, 3], vec![1, 4, 5], vec![2, 6]]);
    }

    #[test]
    fn nobody_passes_a_writer() {
        let read = || request(Op::Acquire, LeaseKind::Read, "x");
        for verb in [Op::Acquire, Op::Release, Op::Downgrade, Op::Restore] {
            let other = request(Op::Acquire, LeaseKind::Write, "y");
            let batch = [
                read(),
                read(),
                request(verb, LeaseKind::Write, "x"),
                other,
                read(),
                read(),
            ];
            assert_eq!(
                plan(&batch),
                [vec![0, 1], vec![2], vec![3], vec![4, 5]],
                "{verb:?}"
            );
        }
    }

    #[test]
    fn only_what_is_alike_comes_together() {
        let read = || request(Op::Acquire, LeaseKind::Read, "x");
        let mut longer = read();
        longer.ttl += 1;
        let mut waits = read();
        waits.refresh_interval = std::time::Duration::from_millis(100);
        let extends = || request(Op::Extend, LeaseKind::Read, "x");
        let batch = [read(), longer, waits, extends(), extends()];
        assert_eq!(plan(&batch).len(), batch.len());
        let exclusive = || request(Op::Acquire, LeaseKind::Exclusive, "x");
        assert_eq!(plan(&[exclusive(), exclusive()]).len(), 2);
        let many: Vec<_> = (0..20)
            .map(|n| request(Op::Acquire, LeaseKind::Read, &n.to_string()))
            .collect();
        assert_eq!(plan(&many).len(), 20);
    }
}
