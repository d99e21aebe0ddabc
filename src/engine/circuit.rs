//! The breaker that the threads of a `Nodes` share: who may ask, who waits for whose verdict, and what is said of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;

use crate::breaker::{Admission, Breaker, LanesUp, Phase};
use crate::config::Settings;
use crate::inbox::Inbox;
use crate::time;

/// A breaker, and those who wait until it is known whether the nodes are back.
#[derive(Debug)]
pub(super) struct Circuit {
    state: Mutex<State>,
    /// Whether a quorum answered the last round: then nobody needs to look at the state.
    ///
    /// Who succeeds writes `seen` and then reads this; who fails takes this and then reads `seen`. Both are sequentially
    /// consistent, since with less both could read what was before, and the success would be lost.
    calm: AtomicBool,
    /// When a quorum was last seen while it was calm, in [`time::micros`].
    seen: AtomicU64,
    /// Whether locks are held in this process while it is open.
    degrades: bool,
    /// The names of the nodes, for the log.
    nodes: String,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    waiting: Vec<Arc<Inbox>>,
}

/// Leave to ask the nodes.
#[derive(Debug)]
pub(super) enum Leave<'a> {
    /// As at all times.
    Granted,
    /// As the one whose attempt says whether the nodes are back.
    Probe(Probe<'a>),
    /// Not now: another one's attempt says so; the inbox is woken.
    Wait,
    /// Not for so long.
    Refused(Duration),
}

/// The probe of a half-open breaker. Dropped without a verdict, the next one probes.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    circuit: &'a Circuit,
    number: u64,
}

impl Circuit {
    pub(super) fn new(settings: &Settings, nodes: String) -> Circuit {
        let now = time::now();
        Circuit {
            state: Mutex::new(State {
                breaker: Breaker::new(settings.threshold, settings.open_for, now),
                waiting: Vec::new(),
            }),
            calm: AtomicBool::new(true),
            seen: AtomicU64::new(time::micros(now)),
            degrades: settings.allow_degraded,
            nodes,
        }
    }

    /// Whether one who waits in `inbox` may ask.
    pub(super) fn leave(&self, inbox: &Arc<Inbox>, lanes: impl FnOnce() -> LanesUp) -> Leave<'_> {
        if self.calm.load(Ordering::Acquire) {
            return Leave::Granted;
        }
        let lanes = lanes();
        let mut state = self.state.lock();
        match state.breaker.admit(time::now(), lanes) {
            Admission::Go => Leave::Granted,
            Admission::Probe(number) => Leave::Probe(Probe {
                circuit: self,
                number,
            }),
            Admission::Open(left) => Leave::Refused(left),
            Admission::Wait => {
                state.waiting.push(Arc::clone(inbox));
                Leave::Wait
            }
        }
    }

    /// A quorum has answered.
    pub(super) fn succeed(&self) {
        let now = time::now();
        self.seen.store(time::micros(now), Ordering::SeqCst);
        if self.calm.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        let was_closed = state.breaker.phase() == Phase::Closed;
        state.breaker.succeed(now);
        self.calm.store(true, Ordering::SeqCst);
        wake(state);
        if !was_closed {
            info!(
                "{}: a quorum answers again: circuit closed{}",
                self.nodes,
                self.words("; no more locks are held in this process alone")
            );
        }
    }

    /// A round of takes that began at `start`, when a lane had come up `risen` times, has run to its own end without a quorum.
    pub(super) fn fail(&self, start: Instant, probe: Option<&Probe<'_>>, risen: u64) {
        let mut state = self.state.lock();
        let was_calm = self.calm.swap(false, Ordering::SeqCst);
        if let (true, Some(seen)) = (was_calm, time::instant(self.seen.load(Ordering::SeqCst))) {
            state.breaker.succeed(seen);
        }
        let was_closed = state.breaker.phase() == Phase::Closed;
        let probe = probe.map(|probe| probe.number);
        if state.breaker.fail(start, time::now(), probe, risen) {
            wake(state);
            if was_closed {
                self.warn();
            }
        } else {
            self.calm.store(state.breaker.is_calm(), Ordering::SeqCst);
        }
    }

    /// No quorum could be connected to.
    pub(super) fn open(&self, start: Instant) {
        let mut state = self.state.lock();
        self.calm.store(false, Ordering::SeqCst);
        // Before the lanes began: each that is up is news.
        state.breaker.open(start, time::now(), 0);
        drop(state); // let go before telling
        self.warn();
    }

    fn warn(&self) {
        warn!(
            "{}: no quorum answers: circuit open{}",
            self.nodes,
            self.words("; locks are held in this process alone until one does")
        );
    }

    fn words(&self, degraded: &'static str) -> &'static str {
        if self.degrades { degraded } else { "" }
    }

    /// Since when no quorum has answered; `None` while one does.
    pub(super) fn since(&self) -> Option<Instant> {
        if self.calm.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().breaker.since()
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.lock().breaker.phase()
    }

    /// How many wait for a verdict.
    #[cfg(all(test, not(loom)))]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.calm.load(Ordering::Acquire) && matches!(self.phase(), Phase::Open { .. })
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut state = self.circuit.state.lock();
        state.breaker.end_probe(self.number);
        wake(state);
    }
}

/// Lets those who wait look again, when the lock is let go.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waiting = std::mem::take(&mut state.waiting);
    drop(state); // let go before waking
    waiting.iter().for_each(|inbox| inbox.wake());
}
