//! Decides whether a queued request is still sent, and records the tokens that a sent request may
//! leave on a node (S4, S5, L3).

use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::lease::LeaseState;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::server_error;

/// Returns the reply to a request that need not be sent; `None` if it must be sent. A request is
/// not sent if its lease is over (S4, S5), or if it is an acquire and the node is quarantined.
pub(crate) fn skip_reply(
    request: &Request,
    node: usize,
    quarantine: Duration,
    now: Instant,
) -> Option<Reply> {
    match (request.op, request.lease.peek(now)) {
        // Waiters may listen on a node without the key, so such a release is sent there (L4).
        (Op::Release, _) if request.publish == Publish::Always => None,
        (Op::Release, _) => {
            let is_gone = !request.lease.may_exist(node, now);
            is_gone.then_some(Reply::Absent)
        }
        // The connection may have broken since the caller asked, and reach a restarted server now.
        (Op::Acquire | Op::Swap, LeaseState::Pending) if !quarantine.is_zero() => {
            let remaining = quarantine;
            Some(Reply::Failed(NodeFailure::Quarantined { remaining }))
        }
        (Op::Acquire | Op::Adopt | Op::Swap | Op::RaiseFence, LeaseState::Pending)
        | (Op::WakeListener | Op::Notify | Op::Inspect | Op::ForceRelease, _)
        | (Op::TakePlace | Op::LeavePlace, _)
        | (_, LeaseState::Held(_)) => None,
        _ => Some(Reply::Failed(NodeFailure::Unreachable(
            "not sent: the lease has ended".into(),
        ))),
    }
}

/// Returns the release that replaces a swap or an adoption whose lease is over, because that would
/// have replaced the former token.
///
/// - A swap: the caller that abandoned the lease may have released the former token already. Each
///   node publishes the release, so it is never skipped itself.
/// - An adoption, if the lease was held: a quorum has replaced the former token, which would be
///   left on this node. After an adoption that failed, another caller may adopt the former token.
pub(crate) fn replacement_release(request: &Request, skipped: &Reply) -> Option<Request> {
    let is_over = !matches!(skipped, Reply::Failed(NodeFailure::Quarantined { .. }));
    let publish = match request.op {
        Op::Swap if is_over => Publish::Always,
        Op::Adopt if request.lease.was_held() => Publish::IfDeleted,
        _ => return None,
    };
    let mut release = Request::new(Op::Release, request.former_lease.as_ref()?, 0);
    release.publish = publish;
    Some(release)
}

/// Records that from now on the request's key may exist on the node for its TTL.
pub(crate) fn record_sent(request: &Request, node: usize, now: Instant) {
    let ttl = Duration::from_millis(request.ttl);
    match request.op {
        op if op.grants() => {
            request.lease.record_sent(node, now, ttl);
            if let Some(entry) = &request.gate_entry {
                entry.record_sent(node, now, request.marker_ttl());
            }
        }
        Op::Extend | Op::Downgrade => request.lease.record_extension_sent(now, ttl),
        _ => {}
    }
}

/// Records a reply: if the first granting request of a lease was refused or not run, the node
/// stores nothing of the lease (S4).
pub(crate) fn record_reply(request: &Request, node: usize, reply: &Reply) {
    let left_nothing = match reply {
        Reply::Held(..) | Reply::PermitTaken(..) | Reply::PermitCountMismatch(_) => true,
        Reply::Absent | Reply::OtherToken => true,
        Reply::Failed(cause) => server_error::is_not_run(cause),
        _ => false,
    };
    if left_nothing && request.op.grants() && request.op != Op::Restore {
        request.lease.record_not_granted(node);
    }
}

/// Records that a sent request has no reply. A hung server may still run it when it continues,
/// until the next connection kills this one.
pub(crate) fn record_unanswered(request: &Request, node: usize) {
    match request.op {
        op if op.grants() => {
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
    use crate::protocol::lease::Lease;
    use crate::protocol::reply::Blocker;
    use crate::tests::fixtures::lease;
    use crate::time::clock;

    #[test]
    fn swap_of_an_ended_lease_is_replaced_by_a_release() {
        let (now, ttl) = (clock::now(), Duration::from_secs(60));
        let (next, former) = (lease("x"), lease("x"));
        let mut swap = Request::new(Op::Swap, &next, 1);
        swap.former_lease = Some(Arc::clone(&former));
        let replaced = |quarantine| {
            let skipped = skip_reply(&swap, 0, quarantine, now)?;
            let release = replacement_release(&swap, &skipped);
            Some(release.map(|release| (release.op, release.lease.token().id())))
        };
        assert_eq!(replaced(Duration::ZERO), None);
        assert_eq!(replaced(ttl), Some(None), "a node that does not vote");
        assert!(next.activate(now + ttl, 0));
        assert_eq!([replaced(Duration::ZERO), replaced(ttl)], [None, None]);
        next.begin_release(now);
        let release = Some(Some((Op::Release, former.token().id())));
        assert_eq!(
            [replaced(Duration::ZERO), replaced(ttl)],
            [release, release]
        );
        let acquire = Request::new(Op::Acquire, &next, 1);
        let skipped = skip_reply(&acquire, 0, Duration::ZERO, now);
        assert!(skipped.is_some_and(|skipped| replacement_release(&acquire, &skipped).is_none()));
    }

    #[test]
    fn adoption_of_a_lease_that_was_held_is_replaced_by_a_release() {
        let (now, ttl) = (clock::now(), Duration::from_secs(60));
        let replaced = |end: &dyn Fn(&Lease)| {
            let (next, former) = (lease("x"), lease("x"));
            let mut adopt = Request::new(Op::Adopt, &next, 1);
            adopt.former_lease = Some(Arc::clone(&former));
            end(&next);
            let skipped = skip_reply(&adopt, 0, Duration::ZERO, now)?;
            let release = replacement_release(&adopt, &skipped);
            Some(release.map(|release| release.lease.token().id() == former.token().id()))
        };
        assert_eq!(replaced(&|_| {}), None, "pending");
        assert_eq!(replaced(&|next| next.abandon()), Some(None), "failed");
        let released = |next: &Lease| {
            assert!(next.activate(now + ttl, 0));
            next.begin_release(now);
        };
        assert_eq!(replaced(&released), Some(Some(true)), "released");
    }

    #[test]
    fn acquire_that_was_refused_or_not_run_needs_no_release() {
        let now = clock::now();
        let ttl = Some(Duration::from_secs(1));
        let failed = |text: &str| Reply::Failed(NodeFailure::ServerError(text.into()));
        for (op, reply, needs_release) in [
            (Op::Acquire, Reply::Done, true),
            (Op::Acquire, Reply::Held(Blocker::Owner, ttl, None), false),
            (Op::Swap, Reply::OtherToken, false),
            (Op::Adopt, Reply::Absent, false),
            (Op::Acquire, failed("MOVED 1 a:1"), false),
            (Op::Swap, failed("OOM not now script: abc, on @x:1."), true),
            (Op::Acquire, Reply::Failed(NodeFailure::TimedOut), true),
            (Op::Restore, failed("MOVED 1 a:1"), true), // the key may have existed before
            (Op::Extend, Reply::Absent, true),          // another request may restore it
        ] {
            let request = Request::new(op, &lease("x"), 1_000);
            let acquire = Request::new(Op::Acquire, &request.lease, 1_000);
            record_sent(&acquire, 0, now);
            record_sent(&request, 0, now);
            record_reply(&request, 0, &reply);
            let may_exist = request.lease.may_exist(0, now);
            assert_eq!(may_exist, needs_release, "{op:?} {reply:?}");
        }
    }
}
