//! What is sent and what is not, and what may follow from it on a node: decisions of a lane that need no thread.

use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::lease::LeaseState;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::server_error;

/// The answer to a request that is not sent: because what it is for is over (rules S4, S5), or because the node is in
/// quarantine for so long.
pub(crate) fn skip_reply(
    request: &Request,
    node: usize,
    quarantine: Duration,
    now: Instant,
) -> Option<Reply> {
    match (request.verb, request.lease.peek(now)) {
        (Op::Release, _) => {
            let gone = !request.lease.may_exist(node, now);
            gone.then_some(Reply::Absent)
        }
        // A connection may have broken, and led to a server that has started anew, since this was asked.
        (Op::Acquire | Op::Swap, LeaseState::Pending) if !quarantine.is_zero() => {
            let remaining = quarantine;
            Some(Reply::Failed(NodeFailure::Quarantined { remaining }))
        }
        (Op::Acquire | Op::Adopt | Op::Swap | Op::RaiseFence, LeaseState::Pending)
        | (Op::WakeListener | Op::Inspect | Op::ForceRelease, _)
        | (_, LeaseState::Held(_)) => None,
        _ => Some(Reply::Failed(NodeFailure::Unreachable(
            "not sent: the lease is over".into(),
        ))),
    }
}

/// What is sent in place of a swap whose lease is over: it was to be the release of the former one, too. Who has given up that
/// lease may have released the former one before.
pub(crate) fn replacement_release(request: &Request, answer: &Reply) -> Option<Request> {
    let is_over = !matches!(answer, Reply::Failed(NodeFailure::Quarantined { .. }));
    let former = request.former_lease.as_ref();
    let former = former.filter(|_| request.verb == Op::Swap && is_over)?;
    let mut release = Request::new(Op::Release, former, 0);
    release.publish = true;
    Some(release)
}

/// From now on the request's key may exist on the node for its TTL.
pub(crate) fn record_sent(request: &Request, node: usize, now: Instant) {
    let ttl = Duration::from_millis(request.ttl);
    match request.verb {
        verb if verb.grants() => {
            request.lease.record_sent(node, now, ttl);
            if let Some(place) = &request.gate_entry {
                place.record_sent(node, now, request.marker_ttl());
            }
        }
        Op::Extend | Op::Downgrade => request.lease.note_extended(now, ttl),
        _ => {}
    }
}

/// What follows from a node's answer for the key: where the first request to grant a lease is refused, or not run, the node
/// has nothing of it (rule S4).
pub(crate) fn note_answered(request: &Request, node: usize, answer: &Reply) {
    let is_nothing = match answer {
        Reply::Held(..) | Reply::PermitTaken(..) | Reply::PermitCountMismatch(_) => true,
        Reply::Absent | Reply::OtherToken => true,
        Reply::Failed(cause) => server_error::is_not_run(cause),
        _ => false,
    };
    if is_nothing && request.verb.grants() && request.verb != Op::Restore {
        request.lease.note_not_granted(node);
    }
}

/// A server that hangs may still run it when it goes on, however late that is: until this lane has killed the connection, its
/// key may come to exist, or for longer.
pub(crate) fn record_unanswered(request: &Request, node: usize) {
    match request.verb {
        verb if verb.grants() => {
            request
                .written_leases()
                .for_each(|lease| lease.record_unanswered(node));
        }
        Op::Extend => {
            let ttl = Duration::from_millis(request.ttl);
            request.lease.record_unanswered_extension(ttl);
        }
        _ => {}
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::lease::tests::lease;
    use crate::protocol::reply::Blocker;
    use crate::time::clock;

    #[test]
    fn a_swap_that_nobody_wants_any_more_is_a_release() {
        let (now, ttl) = (clock::now(), Duration::from_secs(60));
        let (next, former) = (lease("x"), lease("x"));
        let mut swap = Request::new(Op::Swap, &next, 1);
        swap.former_lease = Some(Arc::clone(&former));
        let sent = |quarantine| {
            let answer = skip_reply(&swap, 0, quarantine, now)?;
            let release = replacement_release(&swap, &answer);
            Some(release.map(|release| (release.verb, release.lease.token().id())))
        };
        assert_eq!(sent(Duration::ZERO), None);
        assert_eq!(sent(ttl), Some(None), "a node that is not to vote");
        assert!(next.activate(now + ttl, 0));
        assert_eq!([sent(Duration::ZERO), sent(ttl)], [None, None]);
        next.begin_release(now);
        let release = Some(Some((Op::Release, former.token().id())));
        assert_eq!([sent(Duration::ZERO), sent(ttl)], [release, release]);
        let take = Request::new(Op::Acquire, &next, 1);
        let answer = skip_reply(&take, 0, Duration::ZERO, now);
        assert!(answer.is_some_and(|answer| replacement_release(&take, &answer).is_none()));
    }

    #[test]
    fn request_to_grant_that_was_refused_or_not_run_leaves_nothing_to_release() {
        let now = clock::now();
        let ttl = Some(Duration::from_secs(1));
        let fault = |text: &str| Reply::Failed(NodeFailure::ServerError(text.into()));
        for (verb, answer, leaves) in [
            (Op::Acquire, Reply::Done, true),
            (Op::Acquire, Reply::Held(Blocker::Owner, ttl), false),
            (Op::Swap, Reply::OtherToken, false),
            (Op::Adopt, Reply::Absent, false),
            (Op::Acquire, fault("MOVED 1 a:1"), false),
            (Op::Swap, fault("OOM not now script: abc, on @x:1."), true),
            (Op::Acquire, Reply::Failed(NodeFailure::TimedOut), true),
            (Op::Restore, fault("MOVED 1 a:1"), true), // it may have been there before
            (Op::Extend, Reply::Absent, true),         // another request may restore it
        ] {
            let request = Request::new(verb, &lease("x"), 1_000);
            let take = Request::new(Op::Acquire, &request.lease, 1_000);
            record_sent(&take, 0, now);
            record_sent(&request, 0, now);
            note_answered(&request, 0, &answer);
            let is_there = request.lease.may_exist(0, now);
            assert_eq!(is_there, leaves, "{verb:?} {answer:?}");
        }
    }
}
