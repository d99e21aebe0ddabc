//! What is sent and what is not, and what may follow from it on a node: decisions of a lane that need no thread.

use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::lease::Look;
use crate::script::{Answer, Request, Verb};

/// The answer to a request that is not sent: because what it is for is over (rules S4, S5), or because the node is in
/// quarantine for so long.
pub(crate) fn unsent(request: &Request, quarantine: Duration, now: Instant) -> Option<Answer> {
    match (request.verb, request.lease.peek(now)) {
        (Verb::Release, _) => {
            let gone = !request.lease.may_exist(now);
            gone.then_some(Answer::Absent)
        }
        // A connection may have broken, and led to a server that has started anew, since this was asked.
        (Verb::Take | Verb::Swap, Look::Trying) if !quarantine.is_zero() => {
            let remaining = quarantine;
            Some(Answer::Fault(Cause::Quarantined { remaining }))
        }
        (Verb::Take | Verb::Adopt | Verb::Swap | Verb::Raise, Look::Trying)
        | (Verb::Knock | Verb::Tell | Verb::Break, _)
        | (_, Look::Held(_)) => None,
        _ => Some(Answer::Fault(Cause::Unreachable(
            "not sent: the lease is over".into(),
        ))),
    }
}

/// What is sent in place of a swap whose lease is over: it was to be the release of the former one, too. Who has given up that
/// lease may have released the former one before.
pub(crate) fn instead(request: &Request, answer: &Answer) -> Option<Request> {
    let is_over = !matches!(answer, Answer::Fault(Cause::Quarantined { .. }));
    let former = request.former.as_ref();
    let former = former.filter(|_| request.verb == Verb::Swap && is_over)?;
    let mut release = Request::new(Verb::Release, former, 0);
    release.publish = true;
    Some(release)
}

/// From now on the request's key may exist for its TTL.
pub(crate) fn note_written(request: &Request, now: Instant) {
    if request.verb != Verb::Release {
        let ttl = Duration::from_millis(request.ttl);
        request.lease.note_written(now, ttl);
        if let Some(place) = &request.place {
            place.note_written(now, request.trace());
        }
    }
}

/// A server that hangs may still run it when it goes on, however late that is: until this lane has killed the connection, its
/// key may come to exist, or for longer.
pub(crate) fn note_unanswered(request: &Request) {
    match request.verb {
        Verb::Take | Verb::Adopt | Verb::Swap | Verb::PutBack => {
            request.leases().for_each(|lease| lease.note_unanswered())
        }
        Verb::Extend => {
            let ttl = Duration::from_millis(request.ttl);
            request.lease.note_unanswered_extension(ttl);
        }
        _ => {}
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::lease::tests::lease;
    use crate::time;
    use std::sync::Arc;

    #[test]
    fn a_swap_that_nobody_wants_any_more_is_a_release() {
        let (now, ttl) = (time::now(), Duration::from_secs(60));
        let (next, former) = (lease("x"), lease("x"));
        let mut swap = Request::new(Verb::Swap, &next, 1);
        swap.former = Some(Arc::clone(&former));
        let sent = |quarantine| {
            let answer = unsent(&swap, quarantine, now)?;
            let release = instead(&swap, &answer);
            Some(release.map(|release| (release.verb, release.lease.token().id())))
        };
        assert_eq!(sent(Duration::ZERO), None);
        assert_eq!(sent(ttl), Some(None), "a node that is not to vote");
        assert!(next.hold(now + ttl, 0));
        assert_eq!([sent(Duration::ZERO), sent(ttl)], [None, None]);
        next.begin_release(now);
        let release = Some(Some((Verb::Release, former.token().id())));
        assert_eq!([sent(Duration::ZERO), sent(ttl)], [release, release]);
        let take = Request::new(Verb::Take, &next, 1);
        let answer = unsent(&take, Duration::ZERO, now);
        assert!(answer.is_some_and(|answer| instead(&take, &answer).is_none()));
    }
}
