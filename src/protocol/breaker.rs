//! When to stop asking nodes that do not answer, and when to ask again: a state machine without a clock of its own.
//!
//! Closed, open, half-open as in M. Nygard, *Release It!* (2007), over rounds in place of calls: only a round counts that ran to its
//! own end and in which fewer nodes than a quorum replied anything. Contention is health, and so is an error reply.

use std::time::{Duration, Instant};

/// So long no quorum must have answered before it opens, however many rounds have failed.
pub(crate) const MIN_OUTAGE: Duration = Duration::from_millis(if cfg!(test) { 30 } else { 1_000 });

/// # State table
///
/// | from        | to          | by                                                                              |
/// |-------------|-------------|---------------------------------------------------------------------------------|
/// | `Closed`    | `Open`      | the `threshold`-th failed round in a row, when no quorum was seen for [`QUIET`] |
/// | any         | `Closed`    | a quorum that answers                                                           |
/// | `Open`      | `Probing`   | one who asks when a quorum of lanes is up and one came up since, or after `breaker_open_for` |
/// | `Probing`   | `Open`      | the probe's round, if it failed                                                 |
/// | `Probing`   | `HalfOpen`  | a probe that ended without a verdict; an earlier one has no say                 |
/// | `HalfOpen`  | `Probing`   | the next one who asks                                                           |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Closed,
    Open {
        until: Instant,
        /// How often a lane had come up: that those are up says nothing new.
        connect_epoch: u64,
    },
    HalfOpen,
    /// By the probe of this number.
    Probing(u64),
}

/// Which lanes are up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connectivity {
    /// Whether a quorum of nodes is connected.
    pub(crate) quorum_up: bool,
    /// How often a lane has come up by then.
    pub(crate) epoch: u64,
}

/// What one may do who wants to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Ask.
    Allowed,
    /// Ask, and say under this number how it ended: others wait for that.
    Probe(u64),
    /// Wait for the verdict of another, who probes.
    Wait,
    /// Do not ask for so long.
    Rejected(Duration),
}

/// The breaker of one `Nodes`.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    threshold: u32,
    open_for: Duration,
    phase: Phase,
    failures: u32,
    /// Whether a round has failed since a quorum was last seen.
    failing: bool,
    /// Since when it has not been closed.
    opened: Option<Instant>,
    /// The end of the last failed round that counted: those that began before it overlap with it.
    last_failure_end: Option<Instant>,
    /// When a quorum was last seen.
    last_quorum: Instant,
    probe_seq: u64,
}

impl CircuitBreaker {
    /// Closed, with a quorum that was seen at `now`.
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

    /// Since when it has not been closed; `None` while it is.
    pub(crate) fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// Whether it is closed and has seen no failure since the last quorum.
    pub(crate) fn is_fully_closed(&self) -> bool {
        !self.failing
    }

    /// Whether one who wants to ask may.
    pub(crate) fn admit(&mut self, now: Instant, lanes: Connectivity) -> Admission {
        match self.phase {
            Phase::Closed => Admission::Allowed,
            Phase::Probing(_) => Admission::Wait,
            Phase::HalfOpen => self.probe(),
            Phase::Open {
                until,
                connect_epoch: risen,
            } => {
                if until <= now || lanes.quorum_up && lanes.epoch != risen {
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

    /// A quorum has answered, whatever it said.
    pub(crate) fn record_quorum(&mut self, now: Instant) {
        *self = CircuitBreaker {
            probe_seq: self.probe_seq,
            ..CircuitBreaker::new(self.threshold, self.open_for, self.last_quorum.max(now))
        };
    }

    /// A round that began at `start`, when a lane had come up `risen` times, has ended without a quorum. `true` if that
    /// opened it.
    pub(crate) fn record_failure(
        &mut self,
        start: Instant,
        now: Instant,
        probe: Option<u64>,
        risen: u64,
    ) -> bool {
        if start < self.last_quorum {
            return false; // a quorum has answered since: it says nothing about now
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
            self.open(now, now, risen);
        }
        opens
    }

    /// Opens at once, for an outage that began at `start`, when a lane had come up `risen` times. A failed probe opens it again,
    /// for the same outage.
    pub(crate) fn open(&mut self, start: Instant, now: Instant, risen: u64) {
        self.failing = true;
        self.opened.get_or_insert(start);
        let until = now.checked_add(self.open_for);
        // An instant beyond the clock's range: then only lanes that come up end it.
        let until = until.unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 24 * 3600));
        self.phase = Phase::Open {
            until,
            connect_epoch: risen,
        };
    }

    /// The one who probed under this number is gone. Without a verdict the next one probes.
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
    const DOWN: Connectivity = lanes(false, 0);
    /// One has come up since it opened.
    const UP: Connectivity = lanes(true, 1);

    const fn lanes(quorum: bool, risen: u64) -> Connectivity {
        Connectivity {
            quorum_up: quorum,
            epoch: risen,
        }
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A breaker that opens at the third failure, and a moment at which it has been quiet for long.
    fn breaker() -> (CircuitBreaker, Instant) {
        let now = clock::now();
        (CircuitBreaker::new(3, OPEN_FOR, now), now + 10 * MIN_OUTAGE)
    }

    /// Rounds of 1 ms one after the other that find no quorum; answers whether the last one opened it.
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
    fn it_opens_at_the_threshold_and_not_before() {
        let (mut breaker, now) = breaker();
        assert!(!failures(&mut breaker, now, 2));
        assert_eq!(breaker.admit(now, DOWN), Admission::Allowed);
        assert_eq!(breaker.opened(), None);
        assert!(failures(&mut breaker, now + ms(10), 1));
        assert_eq!(breaker.opened(), Some(now + ms(11)));
        let left = OPEN_FOR - ms(5);
        let asked = now + ms(11) + ms(5);
        assert_eq!(breaker.admit(asked, DOWN), Admission::Rejected(left));
        assert!(!failures(&mut breaker, asked, 5), "opened twice");
    }

    #[test]
    fn one_quorum_breaks_the_row() {
        let (mut breaker, now) = breaker();
        failures(&mut breaker, now, 2);
        breaker.record_quorum(now + ms(5));
        assert!(breaker.is_fully_closed());
        let later = now + 10 * MIN_OUTAGE;
        assert!(!failures(&mut breaker, later, 2));
        assert!(failures(&mut breaker, later + ms(5), 1));
    }

    #[test]
    fn a_round_that_began_before_the_last_quorum_says_nothing() {
        let (mut breaker, now) = breaker();
        breaker.record_quorum(now);
        assert!(!breaker.record_failure(now - ms(1), now + ms(1), None, 0));
        assert!(breaker.is_fully_closed());
    }

    #[test]
    fn rounds_that_overlap_count_once() {
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
    fn it_stays_closed_where_a_quorum_was_seen_a_moment_ago() {
        let now = clock::now();
        let mut breaker = CircuitBreaker::new(3, OPEN_FOR, now);
        assert!(!failures(&mut breaker, now, 9));
        let late = now + MIN_OUTAGE;
        assert!(breaker.record_failure(late, late, None, 0));
    }

    #[test]
    fn it_half_opens_in_time_or_when_lanes_come_up() {
        for (after, lanes, expected) in [
            (OPEN_FOR, DOWN, true),
            (ms(1), UP, true),
            // It came up, and went down again, between two looks: now another one is up.
            (ms(1), lanes(true, 7), true),
            (ms(1), lanes(false, 1), false),
            // Lanes that are up all the time, to nodes that answer nothing, are no news.
            (ms(1), lanes(true, 0), false),
        ] {
            let (mut breaker, now) = open();
            let admission = breaker.admit(now + after, lanes);
            let is_probe = matches!(admission, Admission::Probe(_));
            assert_eq!(is_probe, expected, "{lanes:?}");
        }
        let (mut breaker, now) = open();
        assert!(matches!(breaker.admit(now, UP), Admission::Probe(_)));
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
    }

    #[test]
    fn the_probe_decides() {
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
        assert_eq!(breaker.admit(now, UP), Admission::Rejected(OPEN_FOR));
        assert_eq!(breaker.opened(), opened, "it is the same outage");

        let mut breaker = probing();
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, DOWN), Admission::Probe(2), "the next");
        assert_eq!(breaker.admit(now, DOWN), Admission::Wait);
    }

    #[test]
    fn a_probe_that_is_over_has_no_say_in_the_next_one() {
        let now = clock::now() + 20 * MIN_OUTAGE;
        let (mut breaker, _) = open();
        assert_eq!(breaker.admit(now, UP), Admission::Probe(1));
        // Another's late round finds a quorum, which is gone again at once.
        breaker.record_quorum(now);
        breaker.open(now, now, 1);
        assert_eq!(breaker.admit(now, lanes(true, 2)), Admission::Probe(2));
        breaker.abandon_probe(1);
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
        assert!(!breaker.record_failure(now, now, Some(1), 2));
        assert_eq!(breaker.admit(now, UP), Admission::Wait);
        assert!(breaker.record_failure(now, now, Some(2), 2));
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let now = clock::now() + 10 * MIN_OUTAGE;
        let mut breaker = CircuitBreaker::new(1, Duration::MAX, clock::now());
        assert!(breaker.record_failure(now, now, None, 0));
        assert!(matches!(breaker.admit(now, DOWN), Admission::Rejected(_)));
        let mut never = CircuitBreaker::new(u32::MAX, OPEN_FOR, clock::now());
        assert!(!failures(&mut never, now, 1_000));
    }
}
