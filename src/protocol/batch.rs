//! Groups the requests of a batch that share one script call: readers of one key that acquire, or
//! release, together. A request never overtakes one of its key with which it does not commute (S4).

use std::sync::Arc;

use crate::protocol::request::Request;

/// The number of groups, counted from the last, that a request may join.
const JOIN_LOOKBACK: usize = 8;

/// The groups of a batch. Reused for the next batch to keep its memory.
#[derive(Debug, Default)]
pub(crate) struct BatchPlan {
    /// The first and the last request of each group.
    groups: Vec<(usize, usize)>,
    /// For each request the next one of its group; for the last one itself.
    next: Vec<usize>,
}

impl BatchPlan {
    /// Plans a batch. Requests of one key that do not commute keep their order.
    pub(crate) fn plan(&mut self, requests: &[Arc<Request>]) {
        self.groups.clear();
        self.next.clear();
        for (index, request) in requests.iter().enumerate() {
            self.next.push(index);
            match self.joinable_group(requests, request) {
                Some(group) => {
                    let last = std::mem::replace(&mut self.groups[group].1, index);
                    self.next[last] = index;
                }
                None => self.groups.push((index, index)),
            }
        }
    }

    /// Returns the group that a request can join. `None` if it would overtake a request with which
    /// it does not commute.
    fn joinable_group(&self, requests: &[Arc<Request>], request: &Request) -> Option<usize> {
        if !request.is_commutative_read() {
            return None;
        }
        for (group, (first, _)) in self.groups.iter().enumerate().rev().take(JOIN_LOOKBACK) {
            let other = &requests[*first];
            if request.can_join(other) {
                return Some(group);
            }
            if !other.is_commutative_read() && other.lease.key() == request.lease.key() {
                return None; // a writer, for example: a later reader stays behind it
            }
        }
        None
    }

    /// Returns the first request of each group, in order.
    pub(crate) fn group_leaders(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().map(|(first, _)| *first)
    }

    /// Returns the requests of the group with this first one.
    pub(crate) fn group_members(&self, first: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        std::iter::successors(Some(first), |index| {
            Some(self.next[*index]).filter(|next| next != index)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::kind::LeaseKind;
    use crate::protocol::request::Op;
    use crate::tests::fixtures::lease_as;

    fn request(op: Op, kind: LeaseKind, name: &str) -> Arc<Request> {
        Arc::new(Request::new(op, &lease_as(name, kind), 30))
    }

    fn plan(requests: &[Arc<Request>]) -> Vec<Vec<usize>> {
        let mut plan = BatchPlan::default();
        plan.plan(&requests[..1]);
        plan.plan(requests);
        plan.group_leaders()
            .map(|first| plan.group_members(first).collect())
            .collect()
    }

    #[test]
    fn readers_of_one_key_share_a_call() {
        let acquire = |name| request(Op::Acquire, LeaseKind::Read, name);
        let release = |name| request(Op::Release, LeaseKind::Read, name);
        let batch = [
            acquire("x"),
            release("x"),
            acquire("y"),
            acquire("x"),
            release("x"),
            release("x"),
            acquire("y"),
        ];
        assert_eq!(plan(&batch), [vec![0, 3], vec![1, 4, 5], vec![2, 6]]);
    }

    #[test]
    fn reader_does_not_overtake_a_writer() {
        let read = || request(Op::Acquire, LeaseKind::Read, "x");
        for op in [Op::Acquire, Op::Release, Op::Downgrade, Op::Restore] {
            let other = request(Op::Acquire, LeaseKind::Write, "y");
            let batch = [
                read(),
                read(),
                request(op, LeaseKind::Write, "x"),
                other,
                read(),
                read(),
            ];
            assert_eq!(
                plan(&batch),
                [vec![0, 1], vec![2], vec![3], vec![4, 5]],
                "{op:?}"
            );
        }
    }

    #[test]
    fn different_requests_do_not_share_a_call() {
        let read = || request(Op::Acquire, LeaseKind::Read, "x");
        let mut longer = read();
        Arc::make_mut(&mut longer).ttl += 1;
        let mut waits = read();
        Arc::make_mut(&mut waits).refresh_interval = std::time::Duration::from_millis(100);
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
