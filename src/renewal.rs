//! The clock after a lock: one thread that extends all leases of a `Nodes` that are to be renewed.
//!
//! It never blocks on a round: due renewals go into the lanes together, answers are collected as they come. A lease is
//! tried for the first time at a third of its TTL, and after a failure again and again, with back-off, until it ends. Only a
//! quorum that says "not yours", or the clock, makes it lost (rules S5, S7).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::{Condvar, Mutex};

use crate::agenda::Agenda;
use crate::crew::Helper;
use crate::error::Error;
use crate::key::Ttl;
use crate::lane::Addressee;
use crate::lease::{Extension, Lease, Look};
use crate::quorum::{NodeSet, Tally, Verdict};
use crate::round::{self, Nodes};
use crate::script::{Answer, Request, Verb};
use crate::time;

/// So many renewals are on their way at once, so that a lane's queue has no more of them.
const MOST_OPEN: usize = 256;
/// Renewals go out early by up to this part of their TTL, so that those which are due at about the same time travel together.
const EARLY: u32 = 60;
/// So long the thread waits for more answers when it has some.
const GATHER: Duration = Duration::from_millis(2);
/// The longest pause after failures is this part of a TTL; the first one is an eighth of it.
const LONGEST_PAUSE: u32 = 8;

/// Is told of a lease that was found lost, and how; it owes all the rest.
pub(crate) type Lost = Arc<dyn Fn(&Arc<Lease>, &str) + Send + Sync>;

/// The leases that are renewed, and their thread once there is one.
pub(crate) struct Renewal {
    desk: Arc<Desk>,
    nodes: Arc<Nodes>,
    node_timeout: Duration,
    lost: Lost,
    started: AtomicBool,
    thread: Mutex<Option<Helper>>,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    agenda: Agenda<Renewed>,
    /// The leases whose renewal is on its way: those are in no agenda.
    open: HashSet<u64>,
    /// Answers, with the numbers of their rounds and nodes.
    arrived: Vec<(u32, usize, Answer)>,
    /// The thread sleeps until so many answers are there.
    wanted: usize,
    stopping: bool,
}

struct Renewed {
    lease: Arc<Lease>,
    ttl: Ttl,
    /// When renewing ends, whatever the lease.
    until: Option<Instant>,
    failures: u32,
}

/// A renewal that is about to be sent.
struct Begun {
    id: u64,
    renewed: Renewed,
    turn: Extension,
    expiry: Instant,
}

/// A renewal on its way.
struct Open {
    id: u64,
    renewed: Renewed,
    _turn: Extension,
    tally: Tally,
    absent: NodeSet,
    start: Instant,
    lead: i64,
    end: Instant,
}

impl Renewal {
    pub(crate) fn new(nodes: &Arc<Nodes>, node_timeout: Duration, lost: Lost) -> Renewal {
        Renewal {
            desk: Arc::new(Desk {
                state: Mutex::new(State {
                    agenda: Agenda::new(),
                    open: HashSet::new(),
                    arrived: Vec::new(),
                    wanted: 0,
                    stopping: false,
                }),
                changed: Condvar::new(),
            }),
            nodes: Arc::clone(nodes),
            node_timeout,
            lost,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// From now on a lease is renewed, for `most` at the longest.
    ///
    /// # Errors
    /// `System` when there is no thread to be had.
    pub(crate) fn register(
        &self,
        lease: &Arc<Lease>,
        ttl: Ttl,
        most: Option<Duration>,
    ) -> Result<(), Error> {
        if !self.started.load(Ordering::Acquire) {
            self.start()?;
        }
        let now = time::now();
        let renewed = Renewed {
            lease: Arc::clone(lease),
            ttl,
            until: most.and_then(|most| time::deadline(now, most)),
            failures: 0,
        };
        let mut state = self.desk.state.lock();
        let first = state.agenda.first().map(|(due, _)| due);
        let due = now + renewed.interval();
        state.agenda.put(lease.token().id(), due, renewed);
        drop(state);
        if first.is_none_or(|first| due < first) {
            self.desk.changed.notify_one();
        }
        Ok(())
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let desk = Arc::clone(&self.desk);
            let mut rounds = Rounds {
                desk: Arc::clone(&desk),
                nodes: Arc::clone(&self.nodes),
                node_timeout: self.node_timeout,
                lost: Arc::clone(&self.lost),
                open: HashMap::new(),
                late: HashMap::new(),
                last: 0,
            };
            *thread = Some(Helper::start("redguard-renewal", move || rounds.run())?);
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// A lease is not renewed any more. A renewal that is on its way may still extend it.
    pub(crate) fn retire(&self, lease: &Lease) {
        if self.started.load(Ordering::Acquire) {
            let id = lease.token().id();
            let mut state = self.desk.state.lock();
            let renewed = state.agenda.take(id);
            state.open.remove(&id);
            drop(state);
            drop(renewed);
        }
    }

    /// How many leases are renewed.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        let state = self.desk.state.lock();
        state.agenda.len() + state.open.len()
    }

    /// Lets the thread end.
    pub(crate) fn stop(&self) {
        self.desk.state.lock().stopping = true;
        self.desk.changed.notify_one();
    }

    /// Waits until the thread has ended, until `end`. `false` if it has not.
    pub(crate) fn await_end(&self, end: Instant) -> bool {
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join(end))
    }
}

impl Renewed {
    /// From one renewal to the next: a third of the TTL, a tenth more or less, so that what was taken in one burst does not
    /// come in one burst for ever.
    fn interval(&self) -> Duration {
        let spread = 0.9 + 0.2 * rand::random::<f64>();
        (self.ttl.duration() / 3).mul_f64(spread)
    }

    /// The pause after a failure.
    fn pause(&self) -> Duration {
        let longest = self.ttl.duration() / LONGEST_PAUSE;
        let doubled = longest / 8 * (1 << self.failures.min(3));
        doubled.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    fn early(&self) -> Duration {
        self.ttl.duration() / EARLY
    }
}

impl Addressee for Desk {
    fn post(&self, round: u32, node: usize, answer: Answer) {
        let mut state = self.state.lock();
        state.arrived.push((round, node, answer));
        // The first one wakes it, too: then it waits for the others with a limit.
        let enough = state.arrived.len() == 1 || state.arrived.len() == state.wanted;
        drop(state); // the thread need not wait for us when it wakes
        if enough {
            self.changed.notify_one();
        }
    }
}

/// What the thread owns.
struct Rounds {
    desk: Arc<Desk>,
    nodes: Arc<Nodes>,
    node_timeout: Duration,
    lost: Lost,
    open: HashMap<u32, Open>,
    /// Renewals that a quorum has confirmed while some nodes had not answered.
    late: HashMap<u32, Late>,
    last: u32,
}

/// A node that answers when a quorum has may be the one that has lost the key.
struct Late {
    lease: Arc<Lease>,
    ttl: Ttl,
    end: Instant,
}

impl Rounds {
    fn run(&mut self) {
        let mut answers = Vec::new();
        let mut due = Vec::new();
        while self.wait(&mut answers, &mut due) {
            answers
                .drain(..)
                .for_each(|(round, node, answer)| self.count(round, node, answer));
            let begun = due
                .drain(..)
                .filter_map(|(id, renewed)| self.begin(id, renewed));
            let begun: Vec<Begun> = begun.collect();
            self.send(begun);
            let now = time::now();
            let over = |open: &Open| open.tally.verdict().is_some() || open.end <= now;
            let over = self.open.extract_if(|_, open| over(open));
            for (round, open) in over.collect::<Vec<_>>() {
                self.finish(round, open);
            }
            self.late.retain(|_, late| now < late.end);
        }
    }

    fn count(&mut self, round: u32, node: usize, answer: Answer) {
        if let Some(open) = self.open.get_mut(&round) {
            if answer == Answer::Absent {
                open.absent.insert(node);
            }
            open.tally.vote(node, round::vote(answer));
        } else if let (Some(late), Answer::Absent) = (self.late.get(&round), answer) {
            let nodes = NodeSet::of(node);
            self.nodes.put_back(&late.lease, late.ttl.millis(), nodes);
        }
    }

    /// Waits until there is something to do, and moves that into `answers` and `due`. `false` when the thread is to end.
    fn wait(&self, answers: &mut Vec<(u32, usize, Answer)>, due: &mut Vec<(u64, Renewed)>) -> bool {
        let mut state = self.desk.state.lock();
        // As many as could decide all that are open: who is woken for less does less at a time.
        let decide = self.open.values().map(|open| open.tally.at_least());
        state.wanted = decide.sum();
        let end = self.open.values().map(|open| open.end).min();
        let mut gathered = None;
        loop {
            if state.stopping {
                return false;
            }
            let now = time::now();
            let room = MOST_OPEN - self.open.len();
            // When the first one is due, all others go with it that soon will be.
            let is_due = |state: &State| state.agenda.first().is_some_and(|(at, _)| at <= now);
            let goes = |state: &State| {
                let first = state.agenda.first();
                first.is_some_and(|(at, renewed)| at <= now + renewed.early())
            };
            if is_due(&state) {
                while due.len() < room && goes(&state) {
                    let Some((id, renewed)) = state.agenda.pop() else {
                        break;
                    };
                    state.open.insert(id);
                    due.push((id, renewed));
                }
            }
            let some = !state.arrived.is_empty();
            if some && gathered.is_none() {
                gathered = Some(now + GATHER);
            }
            let arrived = some && state.arrived.len() >= state.wanted;
            let arrived = arrived || gathered.is_some_and(|gathered| gathered <= now);
            if arrived || !due.is_empty() || end.is_some_and(|end| end <= now) {
                state.wanted = 0;
                answers.append(&mut state.arrived);
                return true;
            }
            let next = state.agenda.first().filter(|_| room > 0);
            let next = time::earlier(next.map(|(at, _)| at), gathered);
            match time::earlier(next, end) {
                Some(end) => _ = self.desk.changed.wait_until(&mut state, end),
                None => self.desk.changed.wait(&mut state),
            }
        }
    }

    /// A renewal that is due may be sent, unless there is nothing to renew any more.
    fn begin(&self, id: u64, renewed: Renewed) -> Option<Begun> {
        let start = time::now();
        let expiry = match renewed.lease.look(start) {
            Look::Held(expiry) => expiry,
            look => {
                self.desk.state.lock().open.remove(&id);
                if look == Look::JustLost {
                    (self.lost)(&renewed.lease, "its lease ended before it could be renewed");
                }
                return None;
            }
        };
        if renewed.until.is_some_and(|until| until <= start) {
            debug!("{:?}: renewed no more after max_hold", renewed.lease.key());
            self.desk.state.lock().open.remove(&id);
            return None;
        }
        let Some(turn) = renewed.lease.try_begin_extension() else {
            // Its holder extends it at this moment.
            let pause = renewed.early();
            self.put_back(id, renewed, start + pause);
            return None;
        };
        Some(Begun {
            id,
            renewed,
            turn,
            expiry,
        })
    }

    /// Sends renewals, all that are due in one message to each lane.
    fn send(&mut self, begun: Vec<Begun>) {
        if begun.is_empty() {
            return;
        }
        let (start, lead) = (time::now(), time::lead());
        let mut requests = Vec::with_capacity(begun.len());
        for Begun { renewed, .. } in &begun {
            self.last = self.last.wrapping_add(1);
            let request = Request::new(Verb::Extend, &renewed.lease, renewed.ttl.millis());
            requests.push((request, self.last));
        }
        let desk: Arc<dyn Addressee> = Arc::clone(&self.desk) as _;
        let tallies = self.nodes.ask_for_many(&requests, &desk);
        for ((begun, (_, round)), tally) in begun.into_iter().zip(requests).zip(tallies) {
            let open = Open {
                id: begun.id,
                renewed: begun.renewed,
                _turn: begun.turn,
                tally,
                absent: NodeSet::default(),
                start,
                lead,
                end: begun.expiry.min(start + self.node_timeout),
            };
            self.open.insert(round, open);
        }
    }

    /// What a renewal has come to.
    fn finish(&mut self, round: u32, open: Open) {
        let Open {
            id,
            mut renewed,
            _turn,
            mut tally,
            absent,
            start,
            lead,
            ..
        } = open;
        drop(_turn);
        let (lease, ttl) = (&renewed.lease, renewed.ttl);
        let now = time::now();
        let verdict = tally.verdict().unwrap_or_else(|| tally.close());
        let look = match (
            verdict,
            time::deadline(start, time::validity(ttl.duration())),
        ) {
            (Verdict::Won, Some(until)) => lease.prolong(now, until, lead),
            (Verdict::Refused, _) if lease.lose() => {
                (self.lost)(lease, "a quorum of nodes says that it is not ours");
                Look::Lost
            }
            _ => lease.look(now),
        };
        match (look, verdict) {
            (Look::Held(_), Verdict::Won) => {
                // Only now, with a quorum that is ours, may it come back where it was lost.
                self.nodes.put_back(lease, ttl.millis(), absent);
                if !tally.is_complete() {
                    let late = Late {
                        lease: Arc::clone(lease),
                        ttl,
                        end: start + self.node_timeout,
                    };
                    self.late.insert(round, late);
                }
                renewed.failures = 0;
                let due = start + renewed.interval();
                self.put_back(id, renewed, due);
            }
            (Look::Held(expiry), _) => {
                debug!("{:?}: not renewed: {verdict:?}", lease.key());
                let due = expiry.min(now + renewed.pause());
                renewed.failures += 1;
                self.put_back(id, renewed, due);
            }
            (look, _) => {
                self.desk.state.lock().open.remove(&id);
                if look == Look::JustLost {
                    (self.lost)(lease, "its lease ended before it could be renewed");
                }
            }
        }
    }

    /// Once more at `due`, unless it was retired meanwhile.
    fn put_back(&self, id: u64, renewed: Renewed, due: Instant) {
        let mut state = self.desk.state.lock();
        if state.open.remove(&id) {
            state.agenda.put(id, due, renewed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use super::*;
    use crate::lease::tests::lease;

    const TTL: Duration = Duration::from_secs(64);

    fn renewed(failures: u32) -> Renewed {
        Renewed {
            lease: lease("x"),
            ttl: Ttl::parse(TTL, 0.5).unwrap(),
            until: None,
            failures,
        }
    }

    #[test]
    fn renewals_are_a_third_of_the_ttl_apart_a_tenth_more_or_less() {
        let drawn: Vec<Duration> = (0..1000).map(|_| renewed(0).interval()).collect();
        let (third, least, most) = (TTL / 3, drawn.iter().min(), drawn.iter().max());
        let within = |part: f64, low: f64, high: f64| (low..=high).contains(&part);
        let parts = [least, most].map(|part| part.unwrap().as_secs_f64() / third.as_secs_f64());
        // Of a thousand some come near to both ends.
        assert!(within(parts[0], 0.9, 0.92), "{parts:?}");
        assert!(within(parts[1], 1.08, 1.1), "{parts:?}");
    }

    #[test]
    fn pauses_after_failures_double_up_to_an_eighth_of_the_ttl() {
        for (failures, whole) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (u32::MAX, 8)] {
            let whole = Duration::from_secs(whole);
            let drawn: Vec<Duration> = (0..1000).map(|_| renewed(failures).pause()).collect();
            assert!(
                drawn
                    .iter()
                    .all(|pause| (whole / 2..=whole).contains(pause)),
                "after {failures}"
            );
            let (least, most) = (drawn.iter().min(), drawn.iter().max());
            let spread = *most.unwrap() - *least.unwrap();
            assert!(spread > whole / 4, "after {failures}: {spread:?}");
        }
    }
}
