//! Pipelines with a scripted session that replies as the test decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::node_failure::NodeFailure;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::fixtures::lease_as;
use crate::time::clock;
use crate::transport::direct_sends::MAX_DIRECT_IN_FLIGHT;
use crate::transport::job::{Job, ReplySink};
use crate::transport::node::traits::{DirectIo, InFlight, Session};
use crate::transport::pipeline::{Pipeline, no_connection};
use crate::transport::registry::NodeRegistry;
use crate::transport::status::ConnectionStatus;

/// A session with scripted replies, shared with the test.
#[derive(Clone, Default)]
struct ScriptedSession(Arc<Mutex<ScriptedState>>);

#[derive(Default)]
struct ScriptedState {
    sent: Vec<u64>,
    direct_replies: VecDeque<Result<(u64, Reply), NodeFailure>>,
    is_reloading: bool,
    fails_to_send: bool,
    /// The ops of all batches. `batch_replies` are their replies; after the last one the reply is
    /// `Done`.
    ops: Vec<Op>,
    batch_replies: VecDeque<Reply>,
    is_broken: bool,
    /// Whether the server has closed the connection.
    is_closed: bool,
}

impl Session for ScriptedSession {
    fn send_batch(
        &mut self,
        requests: &[Arc<Request>],
        reply: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let mut state = self.0.lock();
        if state.is_broken {
            return Err(no_connection());
        }
        for (index, request) in requests.iter().enumerate() {
            state.ops.push(request.op);
            reply(
                index,
                state.batch_replies.pop_front().unwrap_or(Reply::Done),
            );
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        match self.0.lock().is_closed {
            true => Err(no_connection()),
            false => Ok(()),
        }
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        Ok(())
    }

    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        Some(self)
    }
}

impl DirectIo for ScriptedSession {
    fn can_append(&self) -> bool {
        !self.0.lock().is_reloading
    }

    fn send(&mut self, sent: &InFlight, _: &[u8]) -> Result<(), NodeFailure> {
        let mut state = self.0.lock();
        state.sent.push(sent.id);
        match state.fails_to_send {
            true => Err(no_connection()),
            false => Ok(()),
        }
    }

    fn next_reply(
        &mut self,
        _: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        match self.0.lock().direct_replies.pop_front() {
            Some(reply) => reply.map(Some),
            None if end.is_some() => Err(NodeFailure::TimedOut),
            None => Ok(None),
        }
    }
}

/// Records the delivered replies.
#[derive(Default)]
struct RecordedReplies(Mutex<Vec<Reply>>);

impl ReplySink for RecordedReplies {
    fn deliver(&self, _: u32, _: usize, reply: Reply) {
        self.0.lock().push(reply);
    }
}

impl RecordedReplies {
    fn take(&self) -> Vec<Reply> {
        std::mem::take(&mut self.0.lock())
    }
}

fn pipeline(node_timeout: Duration) -> Pipeline {
    let status = Arc::new(ConnectionStatus::new());
    let registry = Arc::new(NodeRegistry::of(1));
    let mut config = FakeNode::new("a").node_config(&node::settings(|config| config));
    config.node_timeout = node_timeout;
    Pipeline::new(0, &config, status, registry)
}

/// Returns a pipeline with a scripted session, and a sink for replies.
fn connected_pipeline() -> (Pipeline, ScriptedSession, Arc<RecordedReplies>) {
    let (mut pipeline, script) = (
        pipeline(Duration::from_secs(60)),
        ScriptedSession::default(),
    );
    pipeline.attach_session(Box::new(script.clone()), "run");
    (pipeline, script, Arc::default())
}

fn job(op: Op, lease: &Arc<Lease>, sink: &Arc<RecordedReplies>) -> Job {
    Job {
        request: Arc::new(Request::new(op, lease, 30_000)),
        reply: Some((Arc::clone(sink) as _, 0)),
    }
}

impl Pipeline {
    /// Sends a job directly. Returns whether it was sent.
    fn try_send(&mut self, op: Op, lease: &Arc<Lease>, sink: &Arc<RecordedReplies>) -> bool {
        self.send_direct(job(op, lease, sink), b"", clock::now())
            .is_ok()
    }

    fn overdue(&self) -> u64 {
        self.status.overdue_at.load(Ordering::Acquire)
    }
}

fn exclusive() -> Arc<Lease> {
    lease_as("x", LeaseKind::Exclusive)
}

#[test]
fn direct_sends_are_polled_in_any_order() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let (first, second) = (exclusive(), exclusive());
    assert!(
        pipeline.try_send(Op::Acquire, &first, &sink)
            && pipeline.try_send(Op::Acquire, &second, &sink)
    );
    let overdue = pipeline.overdue();
    assert!(overdue < u64::MAX && !pipeline.poll_replies() && sink.take().is_empty());
    script
        .0
        .lock()
        .direct_replies
        .push_back(Ok((1, Reply::Done)));
    assert!(!pipeline.poll_replies() && pipeline.has_in_flight());
    assert_eq!(
        (sink.take(), pipeline.overdue()),
        (vec![Reply::Done], overdue)
    );
    script
        .0
        .lock()
        .direct_replies
        .push_back(Ok((0, Reply::Absent)));
    assert!(!pipeline.poll_replies() && !pipeline.has_in_flight());
    assert_eq!(
        (sink.take(), pipeline.overdue()),
        (vec![Reply::Absent], u64::MAX)
    );
    assert_eq!(script.0.lock().sent, [0, 1]);
}

#[test]
fn direct_send_behind_a_resendable_request_of_the_token_is_refused() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let (plain, read, other) = (exclusive(), lease_as("x", LeaseKind::Read), exclusive());
    assert!(pipeline.try_send(Op::Acquire, &plain, &sink));
    assert!(
        pipeline.try_send(Op::Release, &plain, &sink),
        "SET is not resent"
    );
    assert!(
        !pipeline.try_send(Op::Release, &plain, &sink),
        "a script may be resent"
    );
    assert!(pipeline.try_send(Op::Acquire, &read, &sink));
    assert!(!pipeline.try_send(Op::Release, &read, &sink));
    script.0.lock().is_reloading = true;
    assert!(!pipeline.try_send(Op::Acquire, &other, &sink));
    script.0.lock().is_reloading = false;
    assert!(pipeline.try_send(Op::Acquire, &other, &sink));
    while pipeline.try_send(Op::Acquire, &exclusive(), &sink) {}
    assert_eq!(script.0.lock().sent.len(), MAX_DIRECT_IN_FLIGHT);
}

#[test]
fn places_for_different_locks_share_a_batch_and_those_for_one_do_not() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let place = |key: &str| {
        let key = lease_as(key, LeaseKind::Exclusive).key().clone();
        let token = Token::existing("redguard:listener:0");
        Arc::new(Lease::new(key, token, LeaseKind::Exclusive))
    };
    pipeline.push_to_batch(job(Op::TakePlace, &place("x"), &sink), clock::now());
    for (key, shares) in [("y", false), ("x", true)] {
        let next = job(Op::LeavePlace, &place(key), &sink);
        assert_eq!(pipeline.batch_shares_token(&next), shares, "{key}");
    }
    assert_eq!(pipeline.send_batch(), Ok(()));
    assert!(pipeline.try_send(Op::TakePlace, &place("x"), &sink));
    assert!(pipeline.try_send(Op::TakePlace, &place("y"), &sink));
    assert!(!pipeline.try_send(Op::LeavePlace, &place("x"), &sink));
    assert_eq!(script.0.lock().sent.len(), 2);
}

#[test]
fn direct_send_of_an_abandoned_lease_is_refused() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let lease = exclusive();
    lease.abandon();
    let result = pipeline.send_direct(job(Op::Acquire, &lease, &sink), b"", clock::now());
    assert!(
        result.is_err() && sink.take().is_empty(),
        "the job is returned to the worker"
    );
    assert!(script.0.lock().sent.is_empty() && !pipeline.has_in_flight());
}

#[test]
fn direct_send_on_a_closed_connection_returns_the_job() {
    let (mut pipeline, script, sink) = connected_pipeline();
    script.0.lock().is_closed = true;
    assert!(!pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    assert!(script.0.lock().sent.is_empty() && sink.take().is_empty());
    assert!(!pipeline.has_in_flight() && pipeline.check_idle() == Err(no_connection()));
    // With requests in flight the connection is not checked before a send.
    script.0.lock().is_closed = false;
    assert!(pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    script.0.lock().is_closed = true;
    assert!(pipeline.try_send(Op::Acquire, &exclusive(), &sink));
}

/// Another connection has found the node restarted: this one may lead to a server that is gone.
#[test]
fn direct_send_on_a_connection_to_a_former_run_is_refused() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let registry = Arc::clone(&pipeline.registry);
    registry.register_run(pipeline.node, "former", true, 0);
    assert!(pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    registry.register_run(pipeline.node, "current", true, 1);
    assert!(!pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    assert_eq!(script.0.lock().sent.len(), 1);
    assert!(sink.take().is_empty(), "the job is returned to the worker");
}

#[test]
fn broken_connection_fails_acquires_and_keeps_releases_pending() {
    for fails_to_send in [true, false] {
        let (mut pipeline, script, sink) = connected_pipeline();
        let lease = exclusive();
        assert!(pipeline.try_send(Op::Acquire, &lease, &sink));
        script.0.lock().fails_to_send = fails_to_send;
        let result = pipeline.send_direct(job(Op::Release, &lease, &sink), b"", clock::now());
        assert!(result.is_ok_and(|wake| wake == fails_to_send));
        script
            .0
            .lock()
            .direct_replies
            .push_back(Err(no_connection()));
        assert!(pipeline.poll_replies(), "the worker must reconnect");
        assert!(!pipeline.try_send(Op::Acquire, &exclusive(), &sink));
        assert!(sink.take().is_empty() && pipeline.has_in_flight());
        assert_eq!(pipeline.drain_replies(), Err(no_connection()));
        assert_eq!(
            sink.take(),
            [Reply::Failed(no_connection())],
            "the result of the acquire is unknown"
        );
        assert!(!pipeline.has_in_flight() && pipeline.overdue() == u64::MAX);
        pipeline.attach_session(Box::new(ScriptedSession::default()), "run");
        assert_eq!(pipeline.send_all_pending(), Ok(()));
        assert_eq!(sink.take(), [Reply::Done], "the release is resent");
    }
}

#[test]
fn unpolled_reply_is_drained_or_times_out() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let now = clock::now();
    pipeline.polls_paused = true;
    let result = pipeline.send_direct(job(Op::Acquire, &exclusive(), &sink), b"", now);
    assert!(result.is_ok_and(|wake| wake) && pipeline.used_since_sleep);
    assert!(
        pipeline.oldest_sent_before(now)
            && !pipeline.oldest_sent_before(now - Duration::from_millis(1))
    );
    script
        .0
        .lock()
        .direct_replies
        .push_back(Ok((0, Reply::Done)));
    assert_eq!(pipeline.drain_replies(), Ok(()));
    assert_eq!(sink.take(), [Reply::Done]);
    assert!(pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    assert_eq!(pipeline.drain_replies(), Err(NodeFailure::TimedOut));
    assert_eq!(sink.take(), [Reply::Failed(NodeFailure::TimedOut)]);
}

#[test]
fn read_only_reply_ends_the_connection() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let read_only = || NodeFailure::ServerError("READONLY no".into());
    assert!(pipeline.try_send(Op::Acquire, &exclusive(), &sink));
    script
        .0
        .lock()
        .direct_replies
        .push_back(Ok((0, Reply::Failed(read_only()))));
    assert!(pipeline.poll_replies());
    assert_eq!(sink.take(), [Reply::Failed(read_only())]);
    assert_eq!(pipeline.drain_replies(), Err(read_only()));
}

fn busy() -> NodeFailure {
    NodeFailure::ServerError("BUSY".into())
}

/// Sends an acquire and a release directly and scripts an error reply to the release.
fn refused_release(pipeline: &mut Pipeline, script: &ScriptedSession, sink: &Arc<RecordedReplies>) {
    let lease = exclusive();
    let next = pipeline.next_id;
    assert!(
        pipeline.try_send(Op::Acquire, &lease, sink)
            && pipeline.try_send(Op::Release, &lease, sink)
    );
    let direct_replies = [
        Ok((next, Reply::Done)),
        Ok((next + 1, Reply::Failed(busy()))),
    ];
    script.0.lock().direct_replies.extend(direct_replies);
}

#[test]
fn release_with_an_error_reply_is_pending_and_keeps_the_connection() {
    let (mut pipeline, script, sink) = connected_pipeline();
    refused_release(&mut pipeline, &script, &sink);
    assert!(
        pipeline.poll_replies(),
        "the worker must resend the release"
    );
    assert!(!pipeline.poll_replies() && !pipeline.has_in_flight());
    assert_eq!(sink.take(), [Reply::Done, Reply::Failed(busy())]);
    assert_eq!(
        (pipeline.drain_replies(), pipeline.pending.len()),
        (Ok(()), 1)
    );
    assert!(
        pipeline.try_send(Op::Acquire, &exclusive(), &sink),
        "other jobs are still sent"
    );
    script
        .0
        .lock()
        .direct_replies
        .push_back(Ok((2, Reply::Done)));
    assert_eq!(
        (pipeline.drain_replies(), sink.take()),
        (Ok(()), vec![Reply::Done])
    );
    // A pending release in a batch stays pending after an error reply, until it succeeds.
    script
        .0
        .lock()
        .batch_replies
        .extend([Reply::Failed(busy())]);
    assert_eq!(pipeline.send_all_pending(), Ok(()));
    assert_eq!(pipeline.pending.len(), 1);
    assert_eq!(pipeline.send_all_pending(), Ok(()));
    assert_eq!(pipeline.pending.len(), 0);
    assert!(sink.take().is_empty(), "the reply was delivered before");
}

#[test]
fn pending_releases_follow_each_batch_in_limited_number() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let leases: Vec<_> = (0..100).map(|_| exclusive()).collect();
    for lease in &leases {
        lease.record_sent(0, clock::now(), Duration::from_secs(60));
        pipeline.reject(job(Op::Release, lease, &sink));
    }
    assert_eq!(pipeline.pending.len(), 100);
    pipeline.attach_session(Box::new(script.clone()), "run");
    assert!(
        script.0.lock().ops.is_empty(),
        "no pending release is sent alone"
    );
    let mut batches = 0;
    while pipeline.pending.len() > 0 {
        pipeline.push_to_batch(job(Op::Acquire, &exclusive(), &sink), clock::now());
        pipeline.admit_pending();
        assert_eq!(pipeline.send_batch(), Ok(()));
        let ops = std::mem::take(&mut script.0.lock().ops);
        assert_eq!(ops[0], Op::Acquire);
        assert!(ops[1..].iter().all(|op| *op == Op::Release));
        assert!(ops.len() <= 33, "{}", ops.len());
        batches += 1;
    }
    assert_eq!((batches, sink.take().len()), (4, 104));
}

#[test]
fn release_of_an_absent_token_is_not_pending() {
    let (mut pipeline, _, sink) = connected_pipeline();
    let (never, over) = (exclusive(), exclusive());
    over.record_sent(
        0,
        clock::now() - Duration::from_secs(60),
        Duration::from_secs(1),
    );
    over.record_sent(1, clock::now(), Duration::from_secs(1)); // another node
    let refused = exclusive();
    assert!(pipeline.try_send(Op::Acquire, &refused, &sink));
    for lease in [&never, &refused] {
        lease.record_contacted(crate::protocol::node_set::NodeSet::single(0));
    }
    refused.record_not_granted(0);
    [never, refused]
        .iter()
        .for_each(|lease| pipeline.reject(job(Op::Release, lease, &sink)));
    assert_eq!(sink.take(), [Reply::Absent, Reply::Absent]);
    assert_eq!(pipeline.pending.len(), 0);
}

#[test]
fn absent_after_a_resent_release_is_done_only_without_a_restart_since_confirmation() {
    // Columns: the run of the server at the first release, its run from then on, the last reply,
    // and the delivered reply.
    for (first, run, reply, expected) in [
        ("run", "run", Reply::OtherToken, Reply::OtherToken),
        ("run", "run", Reply::Absent, Reply::Done),
        ("run", "other run", Reply::Absent, Reply::Absent),
        ("other run", "other run", Reply::Absent, Reply::Absent),
    ] {
        let (mut pipeline, script, sink) = connected_pipeline();
        let lease = exclusive();
        pipeline.attach_session(Box::new(script.clone()), "run");
        assert!(pipeline.try_send(Op::Acquire, &lease, &sink));
        script
            .0
            .lock()
            .direct_replies
            .push_back(Ok((0, Reply::Done)));
        assert_eq!(pipeline.drain_replies(), Ok(()));
        assert!(lease.activate(clock::now() + Duration::from_secs(60), 0));
        let held = clock::to_micros(clock::now());
        while clock::to_micros(clock::now()) == held {
            std::thread::yield_now();
        }
        pipeline.attach_session(Box::new(script.clone()), first);
        lease.begin_release(clock::now());
        assert!(pipeline.try_send(Op::Release, &lease, &sink));
        script
            .0
            .lock()
            .direct_replies
            .push_back(Err(no_connection()));
        assert_eq!(pipeline.drain_replies(), Err(no_connection()));
        // The connection breaks a second time.
        let next = ScriptedSession::default();
        next.0.lock().is_broken = true;
        pipeline.attach_session(Box::new(next), run);
        assert_eq!(pipeline.send_all_pending(), Err(no_connection()));
        let last = ScriptedSession::default();
        last.0.lock().batch_replies.push_back(reply);
        pipeline.attach_session(Box::new(last), run);
        assert_eq!(pipeline.send_all_pending(), Ok(()));
        assert_eq!(sink.take(), [Reply::Done, expected], "{first}, {run}");
    }
}

#[test]
fn cause_that_ends_a_connection_is_not_delivered_to_other_requests() {
    let (mut pipeline, script, sink) = connected_pipeline();
    let other = exclusive();
    assert!(
        pipeline.try_send(Op::Acquire, &exclusive(), &sink)
            && pipeline.try_send(Op::Acquire, &other, &sink)
    );
    let read_only = || NodeFailure::ServerError("READONLY no".into());
    let direct_replies = [Ok((0, Reply::Failed(read_only())))];
    script.0.lock().direct_replies.extend(direct_replies);
    assert_eq!(pipeline.drain_replies(), Err(read_only()));
    let replies = sink.take();
    assert_eq!(replies[0], Reply::Failed(read_only()));
    let is_unknown = |reply: &Reply| match reply {
        Reply::Failed(cause) => !crate::protocol::server_error::is_not_run(cause),
        _ => false,
    };
    assert!(is_unknown(&replies[1]), "{replies:?}");
    assert!(other.may_exist(0, clock::now()));
}

#[test]
fn overdue_reply_wakes_threads_that_wait_for_the_node() {
    let pipeline = &pipeline(Duration::from_millis(1));
    let registry = Arc::clone(&pipeline.registry);
    let (checked, checks) = crossbeam_channel::unbounded();
    let has_replied = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            registry.wait_until(Some(clock::now() + Duration::from_secs(20)), || {
                let _ = checked.send(());
                has_replied.load(Ordering::Acquire)
            })
        });
        assert!(checks.recv().is_ok());
        let done = pipeline.with_overdue_mark(|| {
            has_replied.store(true, Ordering::Release);
            let overdue = pipeline.status.overdue_at.load(Ordering::Acquire);
            while clock::to_micros(clock::now()) <= overdue {
                std::thread::yield_now();
            }
            Ok(())
        });
        assert_eq!((done, pipeline.registry.connect_count()), (Ok(()), 1));
        assert!(waits.join().is_ok_and(|holds| holds));
    });
    let slow_pipeline = crate::tests::transport::pipeline::pipeline(Duration::from_secs(60));
    assert_eq!(slow_pipeline.with_overdue_mark(|| Ok(())), Ok(()));
    assert_eq!(
        slow_pipeline.registry.connect_count(),
        0,
        "the reply was in time"
    );
}
