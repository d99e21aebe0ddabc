//! The end of a command whose lock is being lost: TERM a while before the lock ends, KILL
//! at its end. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// The plan for one command.
#[derive(Debug)]
pub(crate) struct LossPlan {
    /// Whether the command is signalled at all.
    signals: bool,
    grace: Duration,
    state: State,
    /// Whether the command was told to end, or the lock was lost.
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Safe,
    /// TERM was sent; KILL follows unless a renewal succeeds.
    Endangered {
        kill_at: Instant,
    },
    /// KILL follows in any case.
    Lost {
        kill_at: Instant,
    },
    Killed,
}

/// A signal for the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Term,
    Kill,
}

impl LossPlan {
    pub(crate) fn new(signals: bool, grace: Duration) -> LossPlan {
        LossPlan {
            signals,
            grace,
            state: State::Safe,
            failed: false,
        }
    }

    /// Notes that renewals fail, and that the lock ends at `end` if they go on failing.
    pub(crate) fn endangered(&mut self, end: Instant) -> Option<Step> {
        if self.state != State::Safe || !self.signals {
            return None;
        }
        self.state = State::Endangered { kill_at: end };
        self.failed = true;
        Some(Step::Term)
    }

    /// Notes that a renewal has succeeded. The command has been told to end all the same.
    pub(crate) fn safe(&mut self) {
        if matches!(self.state, State::Endangered { .. }) {
            self.state = State::Safe;
        }
    }

    /// Notes that the lock is lost: it has expired, or others may have it already.
    pub(crate) fn lost(&mut self, has_expired: bool, now: Instant) -> Option<Step> {
        self.failed = true;
        if !self.signals {
            return None;
        }
        match self.state {
            State::Lost { .. } | State::Killed => None,
            // No time is left for TERM.
            _ if has_expired => {
                self.state = State::Killed;
                Some(Step::Kill)
            }
            State::Endangered { kill_at } => {
                self.state = State::Lost { kill_at };
                None
            }
            State::Safe => {
                let kill_at = now + self.grace;
                self.state = State::Lost { kill_at };
                Some(Step::Term)
            }
        }
    }

    /// Returns the signal whose time has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Step> {
        let kill_at = self.kill_at()?;
        if now < kill_at {
            return None;
        }
        self.state = State::Killed;
        Some(Step::Kill)
    }

    /// Returns when KILL is due.
    pub(crate) fn kill_at(&self) -> Option<Instant> {
        match self.state {
            State::Endangered { kill_at } | State::Lost { kill_at } => Some(kill_at),
            State::Safe | State::Killed => None,
        }
    }

    /// Returns whether the work of the command may not be trusted: the lock was lost, or the
    /// command was told to end because of it.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn endangered_lock_is_term_once_and_kill_at_its_end() {
        let start = Instant::now();
        let mut plan = LossPlan::new(true, GRACE);
        assert_eq!(plan.endangered(after(start, 5)), Some(Step::Term));
        // No later notice moves the deadline.
        assert_eq!(plan.endangered(after(start, 9)), None);
        assert_eq!(plan.lost(false, after(start, 4)), None);
        assert_eq!(plan.kill_at(), Some(after(start, 5)));
        assert_eq!(plan.due(after(start, 4)), None);
        assert_eq!(plan.due(after(start, 5)), Some(Step::Kill));
        assert_eq!(plan.due(after(start, 6)), None);
        assert_eq!(plan.lost(true, after(start, 6)), None);
        assert!(plan.has_failed());
    }

    #[test]
    fn renewed_lock_is_not_killed() {
        let start = Instant::now();
        let mut plan = LossPlan::new(true, GRACE);
        plan.endangered(after(start, 5));
        plan.safe();
        assert_eq!((plan.kill_at(), plan.due(after(start, 9))), (None, None));
        assert!(plan.has_failed(), "the command was told to end");
        assert_eq!(plan.endangered(after(start, 20)), Some(Step::Term));
    }

    #[test]
    fn taken_lock_is_term_and_kill_after_the_grace() {
        let start = Instant::now();
        let mut plan = LossPlan::new(true, GRACE);
        assert_eq!(plan.lost(false, start), Some(Step::Term));
        assert_eq!(plan.lost(false, after(start, 3)), None);
        assert_eq!(plan.kill_at(), Some(after(start, 5)));
        plan.safe();
        assert_eq!(plan.due(after(start, 5)), Some(Step::Kill));
    }

    #[test]
    fn expired_lock_is_killed_at_once() {
        let start = Instant::now();
        let mut plan = LossPlan::new(true, GRACE);
        assert_eq!(plan.lost(true, start), Some(Step::Kill));
        assert_eq!(plan.kill_at(), None);
    }

    #[test]
    fn warning_signals_nothing_and_remembers() {
        let start = Instant::now();
        let mut plan = LossPlan::new(false, GRACE);
        assert_eq!(plan.endangered(start), None);
        assert!(!plan.has_failed());
        assert_eq!(plan.lost(false, start), None);
        assert_eq!((plan.lost(true, start), plan.kill_at()), (None, None));
        assert!(plan.has_failed());
    }
}
