//! Where a caller blocks: the one place that replies and wake-ups reach it.

use std::time::Instant;

use crate::protocol::reply::Reply;
use crate::sync::primitives::{Condvar, Mutex, MutexGuard};
use crate::time::clock;
use crate::transport::job::ReplySink;

/// A blocked caller's letter box. Who reads answers posts them, everybody else only wakes.
///
/// A wake-up that comes before the wait is kept until a wait has consumed it, so none is ever lost.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Debug)]
struct InboxState {
    /// The round whose answers are welcome; those of former rounds come too late and are dropped.
    round: u32,
    answers: Vec<(usize, Reply)>,
    /// The owner sleeps until so many answers are there.
    wake_at: usize,
    woken: bool,
    /// Its owner is not to wait any more, for anything.
    cancelled: bool,
}

/// What a wait for answers ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// As many answers as were wanted have come.
    Complete,
    /// The time is over. Some answers may have come.
    TimedOut,
    /// The owner was cancelled. Some answers may have come.
    Cancelled,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            state: Mutex::new(InboxState {
                round: 0,
                answers: Vec::new(),
                wake_at: 0,
                woken: false,
                cancelled: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Begins a new round for up to `nodes` answers and answers its number.
    pub(crate) fn open_round(&self, nodes: usize) -> u32 {
        let mut state = self.state.lock();
        state.round = state.round.wrapping_add(1);
        state.answers.clear();
        state.answers.reserve(nodes);
        state.round
    }

    /// Nobody wants more answers in the round that was begun last: they would only be kept.
    pub(crate) fn close_round(&self) {
        let mut state = self.state.lock();
        state.round = state.round.wrapping_add(1);
        state.answers = Vec::new();
    }

    /// Waits until `wanted` answers are there or `end` has come, and moves those that came into `answers`.
    ///
    /// Until `soon` it only yields the processor: where answers come within microseconds, going to sleep and being
    /// woken takes longer than the answers do.
    pub(crate) fn wait_replies(
        &self,
        wanted: usize,
        soon: Option<Instant>,
        end: Option<Instant>,
        answers: &mut Vec<(usize, Reply)>,
    ) -> WaitEnd {
        let mut state = self.state.lock();
        let waits = |state: &InboxState| state.answers.len() < wanted && !state.cancelled;
        while waits(&state) && soon.is_some_and(|soon| clock::now() < soon) {
            drop(state); // for those who post
            std::thread::yield_now();
            state = self.state.lock();
        }
        state.wake_at = wanted;
        let mut timed_out = false;
        while waits(&state) && !timed_out {
            timed_out = self.wait(&mut state, end);
        }
        let ended = match (state.answers.len() >= wanted, state.cancelled) {
            (true, _) => WaitEnd::Complete,
            (false, true) => WaitEnd::Cancelled,
            (false, false) => WaitEnd::TimedOut,
        };
        state.wake_at = 0;
        match answers.is_empty() {
            true => std::mem::swap(answers, &mut state.answers),
            false => answers.append(&mut state.answers),
        }
        ended
    }

    /// Whether fewer answers than `wanted` have come, and the owner is to wait for more.
    pub(crate) fn needs_more(&self, wanted: usize) -> bool {
        let state = self.state.lock();
        state.answers.len() < wanted && !state.cancelled
    }

    /// Wakes the owner from [`sleep`](Inbox::sleep), or keeps its next one from beginning.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        state.woken = true;
        drop(state); // the owner need not wait for us when it wakes
        self.changed.notify_one();
    }

    /// Ends the owner's wait, and all that it begins later.
    pub(crate) fn cancel(&self) {
        let mut state = self.state.lock();
        state.cancelled = true;
        drop(state); // as in `wake`
        self.changed.notify_one();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Waits for a wake-up, at most until `end` (`None`: for ever). `true` if there was one.
    pub(crate) fn sleep(&self, end: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while !state.woken && !state.cancelled {
            if self.wait(&mut state, end) {
                break;
            }
        }
        std::mem::take(&mut state.woken)
    }

    /// One wait, which may end for no reason; `true` when the time is over.
    fn wait(&self, state: &mut MutexGuard<'_, InboxState>, end: Option<Instant>) -> bool {
        match end {
            None => self.changed.wait(state),
            Some(end) => return self.changed.wait_until(state, end).timed_out(),
        }
        false
    }
}

impl ReplySink for Inbox {
    /// Wakes the owner only if it has now as many as it waits for. Answers of former rounds are dropped.
    fn deliver(&self, round: u32, node: usize, answer: Reply) {
        let mut state = self.state.lock();
        if state.round != round {
            return;
        }
        state.answers.push((node, answer));
        let enough = state.answers.len() == state.wake_at;
        drop(state); // the owner need not wait for us when it wakes
        if enough {
            self.changed.notify_one();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::clock;

    #[test]
    fn answers_of_a_former_round_are_dropped() {
        let inbox = Inbox::new();
        let first = inbox.open_round(3);
        inbox.deliver(first, 0, Reply::Done);
        let second = inbox.open_round(3);
        inbox.deliver(first, 1, Reply::Done);
        inbox.deliver(second, 2, Reply::Absent);
        let mut answers = Vec::new();
        let ended = inbox.wait_replies(1, None, None, &mut answers);
        assert_eq!(ended, WaitEnd::Complete);
        assert_eq!(answers, [(2, Reply::Absent)]);
    }

    #[test]
    fn time_ends_a_wait_with_what_came() {
        let inbox = Inbox::new();
        let round = inbox.open_round(3);
        inbox.deliver(round, 1, Reply::Done);
        let mut answers = Vec::new();
        let end = clock::now() + Duration::from_millis(5);
        assert_eq!(
            inbox.wait_replies(2, None, Some(end), &mut answers),
            WaitEnd::TimedOut
        );
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn a_wake_up_before_the_sleep_is_kept_once() {
        let inbox = Inbox::new();
        inbox.wake();
        inbox.wake();
        assert!(inbox.sleep(None));
        assert!(!inbox.sleep(Some(clock::now())));
    }
}
