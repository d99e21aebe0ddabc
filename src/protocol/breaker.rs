//! The circuit breaker: decides whether rounds are sent to nodes of which no quorum replies (S9).
//!
//! Closed, open and half-open as in M. Nygard, *Release It!* (2007), over rounds in place of calls.
//! A round counts as failed if it ran to its end and fewer nodes than a quorum replied. Contention
//! and error replies do not count as failures. The time is passed in.

use std::time::{Duration, Instant};

/// The minimal time without a quorum before the breaker opens, however many rounds have failed.
pub(crate) const MIN_OUTAGE: Duration = Duration::from_millis(if cfg!(test) { 30 } else { 1_000 });

/// How often a quorum is probed that stays connected without serving, as while servers load their
/// data: no connect tells when that ends.
const CONNECTED_PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// # State table
///
/// | from       | to         | by                                                       |
/// |------------|------------|----------------------------------------------------------|
/// | `Closed`   | `Open`     | `threshold` failed rounds in a row, and [`MIN_OUTAGE`]   |
/// | any        | `Closed`   | a quorum that replies                                    |
/// | `Open`     | `Probing`  | an admission after `breaker_open_for`                    |
/// | `Open`     | `Probing`  | an admission after a connect, with a quorum connected    |
/// | `Open`     | `Probing`  | the same without a connect, [`CONNECTED_PROBE_INTERVAL`] |
/// | `Probing`  | `Open`     | the failed round of the present probe                    |
/// | `Probing`  | `HalfOpen` | the present probe, abandoned without a verdict           |
/// | `HalfOpen` | `Probing`  | the next admission                                       |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Closed,
    Open {
        until: Instant,
        /// When a quorum that has stayed connected is probed.
        connected_until: Instant,
        /// The count of connects when the breaker opened. Only a greater count shows a new
        /// connection.
        connect_count: u64,
    },
    HalfOpen,
    /// The probe with this number is in progress.
    Probing(u64),
}

/// The state of the connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connectivity {
    /// Whether a quorum of nodes is connected.
    pub(crate) quorum_up: bool,
    /// The count of connects so far.
    pub(crate) connect_count: u64,
}

/// Whether a caller may ask the nodes; `P` identifies the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission<P = u64> {
    /// The caller asks.
    Allowed,
    /// The caller asks, and reports the verdict of this probe. Other callers wait for it.
    Probe(P),
    /// The caller waits for the probe of another caller.
    Wait,
    /// The caller does not ask for this long.
    Rejected(Duration),
}

impl<P> Admission<P> {
    /// Replaces the identification of the probe.
    pub(crate) fn map_probe<Q>(self, to: impl FnOnce(P) -> Q) -> Admission<Q> {
        match self {
            Admission::Allowed => Admission::Allowed,
            Admission::Probe(probe) => Admission::Probe(to(probe)),
            Admission::Wait => Admission::Wait,
            Admission::Rejected(left) => Admission::Rejected(left),
        }
    }
}

/// The circuit breaker of one node group.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    threshold: u32,
    open_for: Duration,
    phase: Phase,
    failures: u32,
    /// Whether a round has failed since a quorum last replied.
    failing: bool,
    /// The start of the outage; `None` while closed.
    opened: Option<Instant>,
    /// The end of the last counted failure. Rounds that began earlier overlap with it.
    last_failure_end: Option<Instant>,
    /// When a quorum last replied.
    last_quorum: Instant,
    probe_seq: u64,
}

impl CircuitBreaker {
    /// Creates a closed breaker, as if a quorum had replied at `now`.
    pub(crate) fn new(threshold: u32, open_for: Duration, now: Instant) -> CircuitBreaker {
        CircuitBreaker {
            threshold,
            open_for,
            phase: Phase::Closed,
            failures: 0,
            failing: false,
            opened: None,
            last_failure_end: None,
            last_quorum: now,
            probe_seq: 0,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns the start of the outage; `None` while closed.
    pub(crate) fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// Returns whether no round has failed since the last quorum.
    pub(crate) fn is_fully_closed(&self) -> bool {
        !self.failing
    }

    /// Decides whether a round may be sent.
    pub(crate) fn admit(&mut self, now: Instant, connectivity: Connectivity) -> Admission {
        match self.phase {
            Phase::Closed => Admission::Allowed,
            Phase::Probing(_) => Admission::Wait,
            Phase::HalfOpen => self.probe(),
            Phase::Open {
                until,
                connected_until,
                connect_count,
            } => {
                let until = match connectivity.quorum_up {
                    true if connectivity.connect_count != connect_count => now,
                    true => until.min(connected_until),
                    false => until,
                };
                if until <= now {
                    return self.probe();
                }
                Admission::Rejected(until.saturating_duration_since(now))
            }
        }
    }

    fn probe(&mut self) -> Admission {
        self.probe_seq += 1;
        self.phase = Phase::Probing(self.probe_seq);
        Admission::Probe(self.probe_seq)
    }

    /// Records that a quorum replied, granting or not.
    pub(crate) fn record_quorum(&mut self, now: Instant) {
        *self = CircuitBreaker {
            probe_seq: self.probe_seq,
            ..CircuitBreaker::new(self.threshold, self.open_for, self.last_quorum.max(now))
        };
    }

    /// Records a round without a quorum that began at `start`, when the count of connects was
    /// `connect_count`. Returns `true` if the breaker opened.
    pub(crate) fn record_failure(
        &mut self,
        start: Instant,
        now: Instant,
        probe: Option<u64>,
        connect_count: u64,
    ) -> bool {
        if start < self.last_quorum {
            return false; // a quorum has replied since
        }
        self.failing = true;
        let opens = match self.phase {
            Phase::Closed => {
                if self.last_failure_end.is_some_and(|counted| start < counted) {
                    return false;
                }
                self.last_failure_end = Some(now);
                self.failures = self.failures.saturating_add(1);
                let quiet = now.saturating_duration_since(self.last_quorum);
                self.failures >= self.threshold && quiet >= MIN_OUTAGE
            }
            Phase::Probing(number) => probe == Some(number),
            Phase::Open { .. } | Phase::HalfOpen => false,
        };
        if opens {
            self.open(now, now, connect_count);
        }
        opens
    }

    /// Opens the breaker for an outage that began at `start`. A failed probe opens it again, for
    /// the same outage.
    pub(crate) fn open(&mut self, start: Instant, now: Instant, connect_count: u64) {
        self.failing = true;
        self.opened.get_or_insert(start);
        let until = now.checked_add(self.open_for);
        // Beyond the clock's range, only connections that come up end the phase.
        let until = until.unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 24 * 3600));
        self.phase = Phase::Open {
            until,
            connected_until: now + CONNECTED_PROBE_INTERVAL,
            connect_count,
        };
    }

    /// Ends a probe without a verdict: the next admission probes.
    pub(crate) fn abandon_probe(&mut self, number: u64) {
        if self.phase == Phase::Probing(number) {
            self.phase = Phase::HalfOpen;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::time::clock;

    const OPEN_FOR: Duration = Duration::from_secs(60);
    const DOWN: Connectivity = connectivity(false, 0);
    /// A connection has come up since the breaker opened.
    const UP: Connectivity = connectivity(true, 1);

    const fn connectivity(quorum_up: bool, connect_count: u64) -> Connectivity {
        Connectivity {
            quorum_up,
            connect_count,
        }
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Returns a breaker with threshold 3, and a moment long after its last quorum.
    fn breaker() -> (CircuitBreaker, Instant) {
        let now = clock::now();
        (CircuitBreaker::new(3, OPEN_FOR, now), now + 10 * MIN_OUTAGE)
    }

    /// Records failed rounds of 1 ms, one after the other. Returns whether the last one opened.
    fn failures(breaker: &mut CircuitBreaker, from: Instant, count: u32) -> bool {
        let round = |n| from + n * ms(2);
        let fail = |n| breaker.record_failure(round(n), round(n) + ms(1), None, 0);
        (0..count).map(fail).last().unwrap_or_default()
    }

    fn open() -> (CircuitBreaker, Instant) {
        let (mut breaker, now) = breaker();
        assert!(failures(&mut breaker, now, 3));
        (breaker, now + ms(10))
    }

    #[test]
    fn quorum_that_stays_connected_is_probed_after_the_interval() {
        let (mut breaker, now) = breaker();
        assert!(failures(&mut breaker, now, 3));
        let Phase::Open {
            connected_until, ..
        } = breaker.phase()
        else {
            panic!("not open");
        };
        let connected = connectivity(true, 0);
        let before = connected_until - ms(1);
        assert_eq!(breaker.admit(before, connected), Admission::Rejected(ms(1)));
        assert!(matches!(
            breaker.admit(connected_until, DOWN),
            Admission::Rejected(_)
        ));
        let Admission::Probe(number) = breaker.admit(connected_until, connected) else {
            panic!("no probe");
        };
        let failed = connected_until + ms(1);
        assert!(breaker.record_failure(connected_until, failed, Some(number), 0));
        assert_eq!(
            breaker.admit(failed, connected),
            Admission::Rejected(CONNECTED_PROBE_INTERVAL)
        );
    }

    #[test]
    fn breaker_opens_at_the_threshold() {
        let (mut breaker, now) = breaker();
        assert!(!failures(&mut breaker, now, 2));
        assert_eq!(breaker.admit(now, DOWN), Admission::Allowed);
        assert_eq!(breaker.opened(), None);
        assert!(failures(&mut breaker, now + ms(10), 1));
        assert_eq!(breaker.opened(), Some(now + ms(11)));
        let left = OPEN_FOR - ms(5);
        let later = now + ms(11) + ms(5);
        assert_eq!(breaker.admit(later, DOWN), Admission::Rejected(left));
        assert!(!failures(&mut breaker, later, 5), "opened twice");
    }

    #[test]
    fn one_quorum_resets_the_failures() {
        let (mut breaker, now) = breaker();
        failures(&mut breaker, now, 2);
        breaker.record_quorum(now + ms(5));
        assert!(breaker.is_fully_closed());
        let later = now + 10 * MIN_OUTAGE;
        assert!(!failures(&mut breaker, later, 2));
        assert!(failures(&mut breaker, later + ms(5), 1));
    }

    #[test]
    fn failed_round_that_began_before_the_last_quorum_does_not_count() {
        let (mut breaker, now) = breaker();
        breaker.record_quorum(now);
        assert!(!breaker.record_failure(now - ms(1), now + ms(1), None, 0));
        assert!(breaker.is_fully_closed());
    }

    #[test]
    fn overlapping_failures_count_once() {
        let (mut breaker, now) = breaker();
        for _ in 0..100 {
            assert!(!breaker.record_failure(now, now + ms(200), None, 0));
        }
        for _ in 0..100 {
            assert!(!breaker.record_failure(now + ms(199), now + ms(300), None, 0));
        }
        assert!(!breaker.record_failure(now + ms(200), now + ms(400), None, 0));
        assert!(breaker.record_failure(now + ms(400), now + ms(600), None, 0));
    }

    #[test]
    fn breaker_stays_closed_for_min_outage_after_a_quorum() {
        let now = clock::now();
        let mut breaker = CircuitBreaker::new(3, OPEN_FOR, now);
        assert!(!failures(&mut breaker, now, 9));
        let late = now + MIN_OUTAGE;
        assert!(breaker.record_failure(late, late, None, 0));
    }

    #[test]
    fn breaker_probes_in_time_or_when_a_connection_comes_up() {
        for (after, connections, expected) in [
            (OPEN_FOR, DOWN, true),
            (ms(1), UP, true),
            // Connections went up and down between two admissions.
            (ms(1), connectivity(true, 7), true),
            (ms(1), connectivity(false, 1), false),
            // Connections that were up before, to nodes that do not reply, are not new ones.
            (ms(1), connectivity(true, 0), false),
        ] {
            let (mut breaker, now) = open();
            let admission = breaker.admit(now + after, connections);
            let is_probe = matches!(admission, Admission::Probe(_));
            assert_eq!(is_probe, expected, "{connections:?}");
        }
        let (mut breaker, now) = open();
        assert!(matches!(breaker.admit(now, UP), Admission::Probe(_)));
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
    }

    #[test]
    fn probe_closes_or_reopens_the_breaker() {
        let now = clock::now() + 20 * MIN_OUTAGE;
        let probing = || {
            let (mut breaker, _) = open();
            assert_eq!(breaker.admit(now, UP), Admission::Probe(1));
            breaker
        };
        let mut breaker = probing();
        breaker.record_quorum(now);
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, DOWN), Admission::Allowed);

        let mut breaker = probing();
        assert!(
            !breaker.record_failure(now, now, None, 1),
            "not the probe's"
        );
        let opened = breaker.opened();
        assert!(opened.is_some_and(|opened| opened < now));
        assert!(breaker.record_failure(now, now, Some(1), 1));
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, DOWN), Admission::Rejected(OPEN_FOR));
        assert_eq!(
            breaker.admit(now, UP),
            Admission::Rejected(CONNECTED_PROBE_INTERVAL)
        );
        assert_eq!(breaker.opened(), opened, "it is the same outage");

        let mut breaker = probing();
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, DOWN), Admission::Probe(2), "the next");
        assert_eq!(breaker.admit(now, DOWN), Admission::Wait);
    }

    #[test]
    fn ended_probe_does_not_change_the_next_one() {
        let now = clock::now() + 20 * MIN_OUTAGE;
        let (mut breaker, _) = open();
        assert_eq!(breaker.admit(now, UP), Admission::Probe(1));
        // Another caller's late round finds a quorum, and the outage goes on.
        breaker.record_quorum(now);
        breaker.open(now, now, 1);
        assert_eq!(
            breaker.admit(now, connectivity(true, 2)),
            Admission::Probe(2)
        );
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
        assert!(!breaker.record_failure(now, now, Some(1), 2));
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
        assert!(breaker.record_failure(now, now, Some(2), 2));
    }

    #[test]
    fn longest_durations_do_not_overflow() {
        let now = clock::now() + 10 * MIN_OUTAGE;
        let mut breaker = CircuitBreaker::new(1, Duration::MAX, clock::now());
        assert!(breaker.record_failure(now, now, None, 0));
        assert!(matches!(breaker.admit(now, DOWN), Admission::Rejected(_)));
        let mut never = CircuitBreaker::new(u32::MAX, OPEN_FOR, clock::now());
        assert!(!failures(&mut never, now, 1_000));
    }
}
