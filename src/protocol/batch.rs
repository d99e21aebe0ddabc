//! Which requests of a batch travel as one call: readers of one key that come, or leave, together.

use crate::protocol::request::Request;

/// So many calls back a request looks for one that it can join.
const LOOK_BACK: usize = 8;

/// The calls of a batch. Kept from one batch to the next for its memory.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// The first and the last request of each call.
    calls: Vec<(usize, usize)>,
    /// For each request the next one of its call, or itself.
    next: Vec<usize>,
}

impl Calls {
    /// Makes a plan for a batch. What matters of its order is kept.
    pub(crate) fn plan(&mut self, requests: &[Request]) {
        self.calls.clear();
        self.next.clear();
        for (index, request) in requests.iter().enumerate() {
            self.next.push(index);
            match self.to_join(requests, request) {
                Some(call) => {
                    let last = std::mem::replace(&mut self.calls[call].1, index);
                    self.next[last] = index;
                }
                None => self.calls.push((index, index)),
            }
        }
    }

    /// The call that a request can join without passing one that it must not pass.
    fn to_join(&self, requests: &[Request], request: &Request) -> Option<usize> {
        if !request.is_of_readers() {
            return None;
        }
        for (call, (first, _)) in self.calls.iter().enumerate().rev().take(LOOK_BACK) {
            let other = &requests[*first];
            if request.joins(other) {
                return Some(call);
            }
            if !other.is_of_readers() && other.lease.key() == request.lease.key() {
                return None; // a writer, for example: who comes after it stays after it
            }
        }
        None
    }

    /// The first request of each call, in order.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = usize> + '_ {
        self.calls.iter().map(|(first, _)| *first)
    }

    /// The requests of a call, given by its first one.
    pub(crate) fn members(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(first), |index| {
            Some(self.next[*index]).filter(|next| next != index)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::kind::Claim;
    use crate::protocol::lease::tests::lease_as;
    use crate::protocol::request::Verb;

    fn request(verb: Verb, claim: Claim, name: &str) -> Request {
        Request::new(verb, &lease_as(name, claim), 30)
    }

    fn plan(requests: &[Request]) -> Vec<Vec<usize>> {
        let mut calls = Calls::default();
        calls.plan(&requests[..1]);
        calls.plan(requests);
        calls
            .firsts()
            .map(|first| calls.members(first).collect())
            .collect()
    }

    #[test]
    fn readers_of_one_key_come_together_and_leave_together() {
        let come = |name| request(Verb::Take, Claim::Read, name);
        let leave = |name| request(Verb::Release, Claim::Read, name);
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
        let read = || request(Verb::Take, Claim::Read, "x");
        for verb in [Verb::Take, Verb::Release, Verb::Downgrade, Verb::PutBack] {
            let other = request(Verb::Take, Claim::Write, "y");
            let batch = [
                read(),
                read(),
                request(verb, Claim::Write, "x"),
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
        let read = || request(Verb::Take, Claim::Read, "x");
        let mut longer = read();
        longer.ttl += 1;
        let mut waits = read();
        waits.refresh = std::time::Duration::from_millis(100);
        let extends = || request(Verb::Extend, Claim::Read, "x");
        let batch = [read(), longer, waits, extends(), extends()];
        assert_eq!(plan(&batch).len(), batch.len());
        let exclusive = || request(Verb::Take, Claim::Exclusive, "x");
        assert_eq!(plan(&[exclusive(), exclusive()]).len(), 2);
        let many: Vec<_> = (0..20)
            .map(|n| request(Verb::Take, Claim::Read, &n.to_string()))
            .collect();
        assert_eq!(plan(&many).len(), 20);
    }
}
