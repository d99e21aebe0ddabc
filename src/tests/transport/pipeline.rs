//! Callers at the desk, with a session that answers what the test wants.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Cause;
use crate::protocol::kind::Claim;
use crate::protocol::lease::Lease;
use crate::protocol::lease::tests::lease_as;
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::time::clock;
use crate::transport::job::{Addressee, Job};
use crate::transport::node::traits::{Flight, Prompt, Session};
use crate::transport::pipeline::{Desk, FEW, gone};
use crate::transport::registry::Census;
use crate::transport::status::Health;

/// What is to come of what was sent, oldest first; nothing where it is empty.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sent: Vec<u64>,
    answers: VecDeque<Result<(u64, Answer), Cause>>,
    is_healing: bool,
    refuses: bool,
    /// The verbs of all batches, and the answers to them; `Yes` where there are no more.
    verbs: Vec<Verb>,
    exchanged: VecDeque<Answer>,
    breaks: bool,
    /// The other side has closed it.
    is_closed: bool,
}

impl Session for Script {
    fn exchange(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause> {
        let mut state = self.0.lock();
        if state.breaks {
            return Err(gone());
        }
        for (index, request) in requests.iter().enumerate() {
            state.verbs.push(request.verb);
            answer(index, state.exchanged.pop_front().unwrap_or(Answer::Yes));
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), Cause> {
        match self.0.lock().is_closed {
            true => Err(gone()),
            false => Ok(()),
        }
    }

    fn ping(&mut self) -> Result<(), Cause> {
        Ok(())
    }

    fn prompt(&mut self) -> Option<&mut dyn Prompt> {
        Some(self)
    }
}

impl Prompt for Script {
    fn is_in_order(&self) -> bool {
        !self.0.lock().is_healing
    }

    fn send(&mut self, number: u64, _: &[u8]) -> Result<(), Cause> {
        let mut state = self.0.lock();
        state.sent.push(number);
        match state.refuses {
            true => Err(gone()),
            false => Ok(()),
        }
    }

    fn next(
        &mut self,
        _: &VecDeque<Flight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Answer)>, Cause> {
        match self.0.lock().answers.pop_front() {
            Some(answer) => answer.map(Some),
            None if end.is_some() => Err(Cause::TimedOut),
            None => Ok(None),
        }
    }
}

/// Who is told the answers.
#[derive(Default)]
struct Told(Mutex<Vec<Answer>>);

impl Addressee for Told {
    fn post(&self, _: u32, _: usize, answer: Answer) {
        self.0.lock().push(answer);
    }
}

impl Told {
    fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.0.lock())
    }
}

fn desk(node_timeout: Duration) -> Desk {
    let (health, census) = (Arc::new(Health::new()), Arc::new(Census::of(1)));
    Desk::new(0, "a", node_timeout, None, health, census)
}

/// A desk with a session, and who is told.
fn open() -> (Desk, Script, Arc<Told>) {
    let (mut desk, script) = (desk(Duration::from_secs(60)), Script::default());
    desk.open(Box::new(script.clone()), "run");
    (desk, script, Arc::default())
}

fn job(verb: Verb, lease: &Arc<Lease>, told: &Arc<Told>) -> Job {
    Job {
        request: Request::new(verb, lease, 30_000),
        reply: Some((Arc::clone(told) as _, 0)),
    }
}

impl Desk {
    /// Whether the job was sent.
    fn begins(&mut self, verb: Verb, lease: &Arc<Lease>, told: &Arc<Told>) -> bool {
        self.begin(job(verb, lease, told), b"", clock::now())
            .is_ok()
    }

    fn overdue(&self) -> u64 {
        self.health.overdue.load(Ordering::Acquire)
    }
}

fn exclusive() -> Arc<Lease> {
    lease_as("x", Claim::Exclusive)
}

#[test]
fn callers_send_and_take_in_what_has_come() {
    let (mut desk, script, told) = open();
    let (first, second) = (exclusive(), exclusive());
    assert!(desk.begins(Verb::Take, &first, &told) && desk.begins(Verb::Take, &second, &told));
    let overdue = desk.overdue();
    assert!(overdue < u64::MAX && !desk.look() && told.take().is_empty());
    script.0.lock().answers.push_back(Ok((1, Answer::Yes)));
    assert!(!desk.look() && desk.is_open());
    assert_eq!((told.take(), desk.overdue()), (vec![Answer::Yes], overdue));
    script.0.lock().answers.push_back(Ok((0, Answer::Absent)));
    assert!(!desk.look() && !desk.is_open());
    assert_eq!(
        (told.take(), desk.overdue()),
        (vec![Answer::Absent], u64::MAX)
    );
    assert_eq!(script.0.lock().sent, [0, 1]);
}

#[test]
fn nothing_passes_what_may_have_to_be_sent_again() {
    let (mut desk, script, told) = open();
    let (plain, read, other) = (exclusive(), lease_as("x", Claim::Read), exclusive());
    assert!(desk.begins(Verb::Take, &plain, &told));
    assert!(
        desk.begins(Verb::Release, &plain, &told),
        "a SET is not sent again"
    );
    assert!(
        !desk.begins(Verb::Release, &plain, &told),
        "a script may be"
    );
    assert!(desk.begins(Verb::Take, &read, &told));
    assert!(!desk.begins(Verb::Release, &read, &told));
    script.0.lock().is_healing = true;
    assert!(!desk.begins(Verb::Take, &other, &told));
    script.0.lock().is_healing = false;
    assert!(desk.begins(Verb::Take, &other, &told));
    while desk.begins(Verb::Take, &exclusive(), &told) {}
    assert_eq!(script.0.lock().sent.len(), FEW);
}

#[test]
fn what_is_over_is_not_sent() {
    let (mut desk, script, told) = open();
    let lease = exclusive();
    lease.abandon();
    let begun = desk.begin(job(Verb::Take, &lease, &told), b"", clock::now());
    assert!(
        begun.is_err() && told.take().is_empty(),
        "the thread sees to it"
    );
    assert!(script.0.lock().sent.is_empty() && !desk.is_open());
}

#[test]
fn job_on_a_connection_that_has_ended_is_given_back() {
    let (mut desk, script, told) = open();
    script.0.lock().is_closed = true;
    assert!(!desk.begins(Verb::Take, &exclusive(), &told));
    assert!(script.0.lock().sent.is_empty() && told.take().is_empty());
    assert!(!desk.is_open() && desk.check_idle() == Err(gone()));
    // While something is in flight it says nothing of an end.
    script.0.lock().is_closed = false;
    assert!(desk.begins(Verb::Take, &exclusive(), &told));
    script.0.lock().is_closed = true;
    assert!(desk.begins(Verb::Take, &exclusive(), &told));
}

#[test]
fn a_connection_that_breaks_is_left_to_the_thread_and_its_releases_are_owed() {
    for refuses in [true, false] {
        let (mut desk, script, told) = open();
        let lease = exclusive();
        assert!(desk.begins(Verb::Take, &lease, &told));
        script.0.lock().refuses = refuses;
        let begun = desk.begin(job(Verb::Release, &lease, &told), b"", clock::now());
        assert!(begun.is_ok_and(|wake| wake == refuses));
        script.0.lock().answers.push_back(Err(gone()));
        assert!(desk.look(), "the thread must know");
        assert!(!desk.begins(Verb::Take, &exclusive(), &told));
        assert!(told.take().is_empty() && desk.is_open());
        assert_eq!(desk.finish(), Err(gone()));
        assert_eq!(told.take(), [Answer::Fault(gone())], "the take is unknown");
        assert!(!desk.is_open() && desk.overdue() == u64::MAX);
        desk.open(Box::new(Script::default()), "run");
        assert_eq!(desk.send_all_pending(), Ok(()));
        assert_eq!(told.take(), [Answer::Yes], "the release is made again");
    }
}

#[test]
fn answers_that_nobody_looks_for_are_waited_for_as_long_as_a_node_may_take() {
    let (mut desk, script, told) = open();
    let now = clock::now();
    desk.dozes = true;
    let begun = desk.begin(job(Verb::Take, &exclusive(), &told), b"", now);
    assert!(begun.is_ok_and(|wake| wake) && desk.used);
    assert!(desk.waits_since(now) && !desk.waits_since(now - Duration::from_millis(1)));
    script.0.lock().answers.push_back(Ok((0, Answer::Yes)));
    assert_eq!(desk.finish(), Ok(()));
    assert_eq!(told.take(), [Answer::Yes]);
    assert!(desk.begins(Verb::Take, &exclusive(), &told));
    assert_eq!(desk.finish(), Err(Cause::TimedOut));
    assert_eq!(told.take(), [Answer::Fault(Cause::TimedOut)]);
}

#[test]
fn a_master_that_is_none_any_more_is_connected_to_anew() {
    let (mut desk, script, told) = open();
    let read_only = || Cause::Server("READONLY no".into());
    assert!(desk.begins(Verb::Take, &exclusive(), &told));
    script
        .0
        .lock()
        .answers
        .push_back(Ok((0, Answer::Fault(read_only()))));
    assert!(desk.look());
    assert_eq!(told.take(), [Answer::Fault(read_only())]);
    assert_eq!(desk.finish(), Err(read_only()));
}

fn busy() -> Cause {
    Cause::Server("BUSY".into())
}

/// A release that was answered with an error, as the answer to a caller's own request.
fn refused_release(desk: &mut Desk, script: &Script, told: &Arc<Told>) {
    let lease = exclusive();
    let next = desk.next;
    assert!(desk.begins(Verb::Take, &lease, told) && desk.begins(Verb::Release, &lease, told));
    let answers = [
        Ok((next, Answer::Yes)),
        Ok((next + 1, Answer::Fault(busy()))),
    ];
    script.0.lock().answers.extend(answers);
}

#[test]
fn release_answered_with_an_error_is_pending_and_leaves_the_connection_alone() {
    let (mut desk, script, told) = open();
    refused_release(&mut desk, &script, &told);
    assert!(desk.look(), "the thread must know when to try it again");
    assert!(!desk.look() && !desk.is_open());
    assert_eq!(told.take(), [Answer::Yes, Answer::Fault(busy())]);
    assert_eq!((desk.finish(), desk.pending.len()), (Ok(()), 1));
    assert!(desk.begins(Verb::Take, &exclusive(), &told), "others go on");
    script.0.lock().answers.push_back(Ok((2, Answer::Yes)));
    assert_eq!((desk.finish(), told.take()), (Ok(()), vec![Answer::Yes]));
    // In a batch likewise, and to the end.
    script.0.lock().exchanged.extend([Answer::Fault(busy())]);
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
        lease.note_written(0, clock::now(), Duration::from_secs(60));
        desk.refuse(job(Verb::Release, lease, &told));
    }
    assert_eq!(desk.pending.len(), 100);
    desk.open(Box::new(script.clone()), "run");
    assert!(script.0.lock().verbs.is_empty(), "nothing is sent at once");
    let mut batches = 0;
    while desk.pending.len() > 0 {
        desk.admit(job(Verb::Take, &exclusive(), &told));
        desk.admit_pending();
        assert_eq!(desk.exchange(), Ok(()));
        let verbs = std::mem::take(&mut script.0.lock().verbs);
        assert_eq!(verbs[0], Verb::Take);
        assert!(verbs[1..].iter().all(|verb| *verb == Verb::Release));
        assert!(verbs.len() <= 33, "{}", verbs.len());
        batches += 1;
    }
    assert_eq!((batches, told.take().len()), (4, 104));
}

#[test]
fn what_a_node_cannot_have_is_not_pending() {
    let (mut desk, _, told) = open();
    let (never, over) = (exclusive(), exclusive());
    over.note_written(
        0,
        clock::now() - Duration::from_secs(60),
        Duration::from_secs(1),
    );
    over.note_written(1, clock::now(), Duration::from_secs(1)); // another node
    let refused = exclusive();
    assert!(desk.begins(Verb::Take, &refused, &told));
    for lease in [&never, &refused] {
        lease.note_asked(crate::protocol::quorum::NodeSet::of(0));
    }
    refused.note_not_granted(0);
    [never, refused]
        .iter()
        .for_each(|lease| desk.refuse(job(Verb::Release, lease, &told)));
    assert_eq!(told.take(), [Answer::Absent, Answer::Absent]);
    assert_eq!(desk.pending.len(), 0);
}

#[test]
fn absent_is_our_own_release_only_where_the_server_is_the_same_run() {
    let run = ["run", "run", "other run"];
    let answers = [Answer::Foreign, Answer::Absent, Answer::Absent];
    let told_answers = [Answer::Foreign, Answer::Yes, Answer::Absent];
    for ((run, answer), told_answer) in run.into_iter().zip(answers).zip(told_answers) {
        let (mut desk, script, told) = open();
        let lease = exclusive();
        assert!(desk.begins(Verb::Take, &lease, &told));
        assert!(desk.begins(Verb::Release, &lease, &told));
        let answers = [Ok((0, Answer::Yes)), Err(gone())];
        script.0.lock().answers.extend(answers);
        assert_eq!(desk.finish(), Err(gone()));
        // It breaks once more, before or after the server has restarted: what counts is where it was sent first.
        let next = Script::default();
        next.0.lock().breaks = true;
        desk.open(Box::new(next), run);
        assert_eq!(desk.send_all_pending(), Err(gone()));
        let last = Script::default();
        last.0.lock().exchanged.push_back(answer);
        desk.open(Box::new(last), run);
        assert_eq!(desk.send_all_pending(), Ok(()));
        assert_eq!(told.take(), [Answer::Yes, told_answer], "{run}");
    }
}

#[test]
fn cause_that_ends_a_connection_is_not_told_for_what_it_was_no_answer_to() {
    let (mut desk, script, told) = open();
    let other = exclusive();
    assert!(desk.begins(Verb::Take, &exclusive(), &told) && desk.begins(Verb::Take, &other, &told));
    let read_only = || Cause::Server("READONLY no".into());
    let answers = [Ok((0, Answer::Fault(read_only())))];
    script.0.lock().answers.extend(answers);
    assert_eq!(desk.finish(), Err(read_only()));
    let told = told.take();
    assert_eq!(told[0], Answer::Fault(read_only()));
    let is_unknown = |answer: &Answer| match answer {
        Answer::Fault(cause) => !crate::protocol::server_error::is_not_run(cause),
        _ => false,
    };
    assert!(is_unknown(&told[1]), "{told:?}");
    assert!(other.may_exist(0, clock::now()));
}

#[test]
fn who_waits_for_a_node_is_woken_when_it_answers_what_was_overdue() {
    let desk = &desk(Duration::from_millis(1));
    let census = Arc::clone(&desk.census);
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
        let done = desk.watched(|| {
            answered.store(true, Ordering::Release);
            let overdue = desk.health.overdue.load(Ordering::Acquire);
            while clock::micros(clock::now()) <= overdue {
                std::thread::yield_now();
            }
            Ok(())
        });
        assert_eq!((done, desk.census.risen()), (Ok(()), 1));
        assert!(waits.join().is_ok_and(|holds| holds));
    });
    let patient = crate::tests::transport::pipeline::desk(Duration::from_secs(60));
    assert_eq!(patient.watched(|| Ok(())), Ok(()));
    assert_eq!(patient.census.risen(), 0, "it was in time");
}
