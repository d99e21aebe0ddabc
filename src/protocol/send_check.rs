//! What is sent and what is not, and what may follow from it on a node: decisions of a lane that need no thread.

use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::protocol::lease::Look;
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::server_error;

/// The answer to a request that is not sent: because what it is for is over (rules S4, S5), or because the node is in
/// quarantine for so long.
pub(crate) fn unsent(
    request: &Request,
    node: usize,
    quarantine: Duration,
    now: Instant,
) -> Option<Answer> {
    match (request.verb, request.lease.peek(now)) {
        (Verb::Release, _) => {
            let gone = !request.lease.may_exist(node, now);
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

/// From now on the request's key may exist on the node for its TTL.
pub(crate) fn note_written(request: &Request, node: usize, now: Instant) {
    let ttl = Duration::from_millis(request.ttl);
    match request.verb {
        verb if verb.grants() => {
            request.lease.note_written(node, now, ttl);
            if let Some(place) = &request.place {
                place.note_written(node, now, request.trace());
            }
        }
        Verb::Extend | Verb::Downgrade => request.lease.note_extended(now, ttl),
        _ => {}
    }
}

/// What follows from a node's answer for the key: where the first request to grant a lease is refused, or not run, the node
/// has nothing of it (rule S4).
pub(crate) fn note_answered(request: &Request, node: usize, answer: &Answer) {
    let is_nothing = match answer {
        Answer::Held(..) | Answer::NotThisOne(..) | Answer::OtherPermits(_) => true,
        Answer::Absent | Answer::Foreign => true,
        Answer::Fault(cause) => server_error::is_not_run(cause),
        _ => false,
    };
    if is_nothing && request.verb.grants() && request.verb != Verb::PutBack {
        request.lease.note_not_granted(node);
    }
}

/// A server that hangs may still run it when it goes on, however late that is: until this lane has killed the connection, its
/// key may come to exist, or for longer.
pub(crate) fn note_unanswered(request: &Request, node: usize) {
    match request.verb {
        verb if verb.grants() => {
            request
                .leases()
                .for_each(|lease| lease.note_unanswered(node));
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
    use std::sync::Arc;

    use super::*;
    use crate::protocol::lease::tests::lease;
    use crate::protocol::reply::Holder;
    use crate::time::clock;

    #[test]
    fn a_swap_that_nobody_wants_any_more_is_a_release() {
        let (now, ttl) = (clock::now(), Duration::from_secs(60));
        let (next, former) = (lease("x"), lease("x"));
        let mut swap = Request::new(Verb::Swap, &next, 1);
        swap.former = Some(Arc::clone(&former));
        let sent = |quarantine| {
            let answer = unsent(&swap, 0, quarantine, now)?;
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
        let answer = unsent(&take, 0, Duration::ZERO, now);
        assert!(answer.is_some_and(|answer| instead(&take, &answer).is_none()));
    }

    #[test]
    fn request_to_grant_that_was_refused_or_not_run_leaves_nothing_to_release() {
        let now = clock::now();
        let ttl = Some(Duration::from_secs(1));
        let fault = |text: &str| Answer::Fault(Cause::Server(text.into()));
        for (verb, answer, leaves) in [
            (Verb::Take, Answer::Yes, true),
            (Verb::Take, Answer::Held(Holder::One, ttl), false),
            (Verb::Swap, Answer::Foreign, false),
            (Verb::Adopt, Answer::Absent, false),
            (Verb::Take, fault("MOVED 1 a:1"), false),
            (Verb::Swap, fault("OOM not now script: abc, on @x:1."), true),
            (Verb::Take, Answer::Fault(Cause::TimedOut), true),
            (Verb::PutBack, fault("MOVED 1 a:1"), true), // it may have been there before
            (Verb::Extend, Answer::Absent, true),        // another request may restore it
        ] {
            let request = Request::new(verb, &lease("x"), 1_000);
            let take = Request::new(Verb::Take, &request.lease, 1_000);
            note_written(&take, 0, now);
            note_written(&request, 0, now);
            note_answered(&request, 0, &answer);
            let is_there = request.lease.may_exist(0, now);
            assert_eq!(is_there, leaves, "{verb:?} {answer:?}");
        }
    }
}
