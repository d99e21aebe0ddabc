//! Callers at the desk, with a session that answers what the test wants.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::NodeFailure;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::fixtures::lease_as;
use crate::time::clock;
use crate::transport::job::{Job, ReplySink};
use crate::transport::node::traits::{DirectIo, InFlight, Session};
use crate::transport::pipeline::{MAX_DIRECT_IN_FLIGHT, Pipeline, no_connection};
use crate::transport::registry::NodeRegistry;
use crate::transport::status::ConnectionStatus;

/// What is to come of what was sent, oldest first; nothing where it is empty.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sent: Vec<u64>,
    answers: VecDeque<Result<(u64, Reply), NodeFailure>>,
    is_healing: bool,
    refuses: bool,
    /// The ops of all batches, and the answers to them; `Yes` where there are no more.
    ops: Vec<Op>,
    exchanged: VecDeque<Reply>,
    breaks: bool,
    /// The other side has closed it.
    is_closed: bool,
}

impl Session for Script {
    fn send_batch(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let mut state = self.0.lock();
        if state.breaks {
            return Err(no_connection());
        }
        for (index, request) in requests.iter().enumerate() {
            state.ops.push(request.op);
            answer(index, state.exchanged.pop_front().unwrap_or(Reply::Done));
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

impl DirectIo for Script {
    fn can_append(&self) -> bool {
        !self.0.lock().is_healing
    }

    fn send(&mut self, number: u64, _: &[u8]) -> Result<(), NodeFailure> {
        let mut state = self.0.lock();
        state.sent.push(number);
        match state.refuses {
            true => Err(no_connection()),
            false => Ok(()),
        }
    }

    fn next_reply(
        &mut self,
        _: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        match self.0.lock().answers.pop_front() {
            Some(answer) => answer.map(Some),
            None if end.is_some() => Err(NodeFailure::TimedOut),
            None => Ok(None),
        }
    }
}

/// Who is told the answers.
#[derive(Default)]
struct Told(Mutex<Vec<Reply>>);

impl ReplySink for Told {
    fn deliver(&self, _: u32, _: usize, answer: Reply) {
        self.0.lock().push(answer);
    }
}

impl Told {
    fn take(&self) -> Vec<Reply> {
        std::mem::take(&mut self.0.lock())
    }
}

fn desk(node_timeout: Duration) -> Pipeline {
    let status = Arc::new(ConnectionStatus::new());
    let registry = Arc::new(NodeRegistry::of(1));
    let mut config = FakeNode::new("a").node_config(&node::settings(|config| config));
    config.node_timeout = node_timeout;
    Pipeline::new(0, &config, status, registry)
}

/// A desk with a session, and who is told.
fn open() -> (Pipeline, Script, Arc<Told>) {
    let (mut desk, script) = (desk(Duration::from_secs(60)), Script::default());
    desk.attach_session(Box::new(script.clone()), "run");
    (desk, script, Arc::default())
}

fn job(op: Op, lease: &Arc<Lease>, told: &Arc<Told>) -> Job {
    Job {
        request: Request::new(op, lease, 30_000),
        reply: Some((Arc::clone(told) as _, 0)),
    }
}

impl Pipeline {
    /// Whether the job was sent.
    fn begins(&mut self, op: Op, lease: &Arc<Lease>, told: &Arc<Told>) -> bool {
        self.send_direct(job(op, lease, told), b"", clock::now())
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
fn callers_send_and_take_in_what_has_come() {
    let (mut desk, script, told) = open();
    let (first, second) = (exclusive(), exclusive());
    assert!(desk.begins(Op::Acquire, &first, &told) && desk.begins(Op::Acquire, &second, &told));
    let overdue = desk.overdue();
    assert!(overdue < u64::MAX && !desk.poll_replies() && told.take().is_empty());
    script.0.lock().answers.push_back(Ok((1, Reply::Done)));
    assert!(!desk.poll_replies() && desk.has_in_flight());
    assert_eq!((told.take(), desk.overdue()), (vec![Reply::Done], overdue));
    script.0.lock().answers.push_back(Ok((0, Reply::Absent)));
    assert!(!desk.poll_replies() && !desk.has_in_flight());
    assert_eq!(
        (told.take(), desk.overdue()),
        (vec![Reply::Absent], u64::MAX)
    );
    assert_eq!(script.0.lock().sent, [0, 1]);
}

#[test]
fn nothing_passes_what_may_have_to_be_sent_again() {
    let (mut desk, script, told) = open();
    let (plain, read, other) = (exclusive(), lease_as("x", LeaseKind::Read), exclusive());
    assert!(desk.begins(Op::Acquire, &plain, &told));
    assert!(
        desk.begins(Op::Release, &plain, &told),
        "a SET is not sent again"
    );
    assert!(!desk.begins(Op::Release, &plain, &told), "a script may be");
    assert!(desk.begins(Op::Acquire, &read, &told));
    assert!(!desk.begins(Op::Release, &read, &told));
    script.0.lock().is_healing = true;
    assert!(!desk.begins(Op::Acquire, &other, &told));
    script.0.lock().is_healing = false;
    assert!(desk.begins(Op::Acquire, &other, &told));
    while desk.begins(Op::Acquire, &exclusive(), &told) {}
    assert_eq!(script.0.lock().sent.len(), MAX_DIRECT_IN_FLIGHT);
}

#[test]
fn what_is_over_is_not_sent() {
    let (mut desk, script, told) = open();
    let lease = exclusive();
    lease.abandon();
    let begun = desk.send_direct(job(Op::Acquire, &lease, &told), b"", clock::now());
    assert!(
        begun.is_err() && told.take().is_empty(),
        "the thread sees to it"
    );
    assert!(script.0.lock().sent.is_empty() && !desk.has_in_flight());
}

#[test]
fn job_on_a_connection_that_has_ended_is_given_back() {
    let (mut desk, script, told) = open();
    script.0.lock().is_closed = true;
    assert!(!desk.begins(Op::Acquire, &exclusive(), &told));
    assert!(script.0.lock().sent.is_empty() && told.take().is_empty());
    assert!(!desk.has_in_flight() && desk.check_idle() == Err(no_connection()));
    // While something is in flight it says nothing of an end.
    script.0.lock().is_closed = false;
    assert!(desk.begins(Op::Acquire, &exclusive(), &told));
    script.0.lock().is_closed = true;
    assert!(desk.begins(Op::Acquire, &exclusive(), &told));
}

#[test]
fn a_connection_that_breaks_is_left_to_the_thread_and_its_releases_are_owed() {
    for refuses in [true, false] {
        let (mut desk, script, told) = open();
        let lease = exclusive();
        assert!(desk.begins(Op::Acquire, &lease, &told));
        script.0.lock().refuses = refuses;
        let begun = desk.send_direct(job(Op::Release, &lease, &told), b"", clock::now());
        assert!(begun.is_ok_and(|wake| wake == refuses));
        script.0.lock().answers.push_back(Err(no_connection()));
        assert!(desk.poll_replies(), "the thread must know");
        assert!(!desk.begins(Op::Acquire, &exclusive(), &told));
        assert!(told.take().is_empty() && desk.has_in_flight());
        assert_eq!(desk.drain_replies(), Err(no_connection()));
        assert_eq!(
            told.take(),
            [Reply::Failed(no_connection())],
            "the take is unknown"
        );
        assert!(!desk.has_in_flight() && desk.overdue() == u64::MAX);
        desk.attach_session(Box::new(Script::default()), "run");
        assert_eq!(desk.send_all_pending(), Ok(()));
        assert_eq!(told.take(), [Reply::Done], "the release is made again");
    }
}

#[test]
fn answers_that_nobody_looks_for_are_waited_for_as_long_as_a_node_may_take() {
    let (mut desk, script, told) = open();
    let now = clock::now();
    desk.worker_asleep = true;
    let begun = desk.send_direct(job(Op::Acquire, &exclusive(), &told), b"", now);
    assert!(begun.is_ok_and(|wake| wake) && desk.used_since_poll);
    assert!(
        desk.oldest_sent_before(now) && !desk.oldest_sent_before(now - Duration::from_millis(1))
    );
    script.0.lock().answers.push_back(Ok((0, Reply::Done)));
    assert_eq!(desk.drain_replies(), Ok(()));
    assert_eq!(told.take(), [Reply::Done]);
    assert!(desk.begins(Op::Acquire, &exclusive(), &told));
    assert_eq!(desk.drain_replies(), Err(NodeFailure::TimedOut));
    assert_eq!(told.take(), [Reply::Failed(NodeFailure::TimedOut)]);
}

#[test]
fn a_master_that_is_none_any_more_is_connected_to_anew() {
    let (mut desk, script, told) = open();
    let read_only = || NodeFailure::ServerError("READONLY no".into());
    assert!(desk.begins(Op::Acquire, &exclusive(), &told));
    script
        .0
        .lock()
        .answers
        .push_back(Ok((0, Reply::Failed(read_only()))));
    assert!(desk.poll_replies());
    assert_eq!(told.take(), [Reply::Failed(read_only())]);
    assert_eq!(desk.drain_replies(), Err(read_only()));
}

fn busy() -> NodeFailure {
    NodeFailure::ServerError("BUSY".into())
}

/// A release that was answered with an error, as the answer to a caller's own request.
fn refused_release(desk: &mut Pipeline, script: &Script, told: &Arc<Told>) {
    let lease = exclusive();
    let next = desk.next_id;
    assert!(desk.begins(Op::Acquire, &lease, told) && desk.begins(Op::Release, &lease, told));
    let answers = [
        Ok((next, Reply::Done)),
        Ok((next + 1, Reply::Failed(busy()))),
    ];
    script.0.lock().answers.extend(answers);
}

#[test]
fn release_answered_with_an_error_is_pending_and_leaves_the_connection_alone() {
    let (mut desk, script, told) = open();
    refused_release(&mut desk, &script, &told);
    assert!(
        desk.poll_replies(),
        "the thread must know when to try it again"
    );
    assert!(!desk.poll_replies() && !desk.has_in_flight());
    assert_eq!(told.take(), [Reply::Done, Reply::Failed(busy())]);
    assert_eq!((desk.drain_replies(), desk.pending.len()), (Ok(()), 1));
    assert!(
        desk.begins(Op::Acquire, &exclusive(), &told),
        "others go on"
    );
    script.0.lock().answers.push_back(Ok((2, Reply::Done)));
    assert_eq!(
        (desk.drain_replies(), told.take()),
        (Ok(()), vec![Reply::Done])
    );
    // In a batch likewise, and to the end.
    script.0.lock().exchanged.extend([Reply::Failed(busy())]);
    assert_eq!(desk.send_all_pending(), Ok(()));
    assert_eq!(desk.pending.len(), 1);
    assert_eq!(desk.send_all_pending(), Ok(()));
    assert_eq!(desk.pending.len(), 0);
    assert!(told.take().is_empty(), "it was told before");
}

#[test]
fn pending_releases_go_behind_what_is_asked_a_few_at_a_time() {
    let (mut desk, script, told) = open();
    let leases: Vec<_> = (0..100).map(|_| exclusive()).collect();
    for lease in &leases {
        lease.record_sent(0, clock::now(), Duration::from_secs(60));
        desk.reject(job(Op::Release, lease, &told));
    }
    assert_eq!(desk.pending.len(), 100);
    desk.attach_session(Box::new(script.clone()), "run");
    assert!(script.0.lock().ops.is_empty(), "nothing is sent at once");
    let mut batches = 0;
    while desk.pending.len() > 0 {
        desk.push_to_batch(job(Op::Acquire, &exclusive(), &told));
        desk.admit_pending();
        assert_eq!(desk.send_batch(), Ok(()));
        let ops = std::mem::take(&mut script.0.lock().ops);
        assert_eq!(ops[0], Op::Acquire);
        assert!(ops[1..].iter().all(|op| *op == Op::Release));
        assert!(ops.len() <= 33, "{}", ops.len());
        batches += 1;
    }
    assert_eq!((batches, told.take().len()), (4, 104));
}

#[test]
fn what_a_node_cannot_have_is_not_pending() {
    let (mut desk, _, told) = open();
    let (never, over) = (exclusive(), exclusive());
    over.record_sent(
        0,
        clock::now() - Duration::from_secs(60),
        Duration::from_secs(1),
    );
    over.record_sent(1, clock::now(), Duration::from_secs(1)); // another node
    let refused = exclusive();
    assert!(desk.begins(Op::Acquire, &refused, &told));
    for lease in [&never, &refused] {
        lease.record_contacted(crate::protocol::quorum::NodeSet::single(0));
    }
    refused.record_not_granted(0);
    [never, refused]
        .iter()
        .for_each(|lease| desk.reject(job(Op::Release, lease, &told)));
    assert_eq!(told.take(), [Reply::Absent, Reply::Absent]);
    assert_eq!(desk.pending.len(), 0);
}

#[test]
fn absent_is_our_own_release_only_where_the_server_has_not_restarted_since_the_lease_was_confirmed()
{
    // The run of the server when the release was sent first, and from then on.
    for (first, run, answer, told_answer) in [
        ("run", "run", Reply::OtherToken, Reply::OtherToken),
        ("run", "run", Reply::Absent, Reply::Done),
        ("run", "other run", Reply::Absent, Reply::Absent),
        ("other run", "other run", Reply::Absent, Reply::Absent),
    ] {
        let (mut desk, script, told) = open();
        let lease = exclusive();
        desk.attach_session(Box::new(script.clone()), "run");
        assert!(desk.begins(Op::Acquire, &lease, &told));
        script.0.lock().answers.push_back(Ok((0, Reply::Done)));
        assert_eq!(desk.drain_replies(), Ok(()));
        assert!(lease.activate(clock::now() + Duration::from_secs(60), 0));
        let held = clock::to_micros(clock::now());
        while clock::to_micros(clock::now()) == held {
            std::thread::yield_now();
        }
        desk.attach_session(Box::new(script.clone()), first);
        lease.begin_release(clock::now());
        assert!(desk.begins(Op::Release, &lease, &told));
        script.0.lock().answers.push_back(Err(no_connection()));
        assert_eq!(desk.drain_replies(), Err(no_connection()));
        // It breaks once more.
        let next = Script::default();
        next.0.lock().breaks = true;
        desk.attach_session(Box::new(next), run);
        assert_eq!(desk.send_all_pending(), Err(no_connection()));
        let last = Script::default();
        last.0.lock().exchanged.push_back(answer);
        desk.attach_session(Box::new(last), run);
        assert_eq!(desk.send_all_pending(), Ok(()));
        assert_eq!(told.take(), [Reply::Done, told_answer], "{first}, {run}");
    }
}

#[test]
fn cause_that_ends_a_connection_is_not_told_for_what_it_was_no_answer_to() {
    let (mut desk, script, told) = open();
    let other = exclusive();
    assert!(
        desk.begins(Op::Acquire, &exclusive(), &told) && desk.begins(Op::Acquire, &other, &told)
    );
    let read_only = || NodeFailure::ServerError("READONLY no".into());
    let answers = [Ok((0, Reply::Failed(read_only())))];
    script.0.lock().answers.extend(answers);
    assert_eq!(desk.drain_replies(), Err(read_only()));
    let told = told.take();
    assert_eq!(told[0], Reply::Failed(read_only()));
    let is_unknown = |answer: &Reply| match answer {
        Reply::Failed(cause) => !crate::protocol::server_error::is_not_run(cause),
        _ => false,
    };
    assert!(is_unknown(&told[1]), "{told:?}");
    assert!(other.may_exist(0, clock::now()));
}

#[test]
fn who_waits_for_a_node_is_woken_when_it_answers_what_was_overdue() {
    let desk = &desk(Duration::from_millis(1));
    let census = Arc::clone(&desk.registry);
    let (looked, looks) = crossbeam_channel::unbounded();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            census.wait_until(Some(clock::now() + Duration::from_secs(20)), || {
                let _ = looked.send(());
                answered.load(Ordering::Acquire)
            })
        });
        assert!(looks.recv().is_ok());
        let done = desk.with_overdue_mark(|| {
            answered.store(true, Ordering::Release);
            let overdue = desk.status.overdue_at.load(Ordering::Acquire);
            while clock::to_micros(clock::now()) <= overdue {
                std::thread::yield_now();
            }
            Ok(())
        });
        assert_eq!((done, desk.registry.connect_epoch()), (Ok(()), 1));
        assert!(waits.join().is_ok_and(|holds| holds));
    });
    let patient = crate::tests::transport::pipeline::desk(Duration::from_secs(60));
    assert_eq!(patient.with_overdue_mark(|| Ok(())), Ok(()));
    assert_eq!(patient.registry.connect_epoch(), 0, "it was in time");
}
