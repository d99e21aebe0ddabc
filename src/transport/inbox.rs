//! The inbox in which a caller blocks: replies, wake-ups and cancellations arrive there.
//!
//! Workers and other threads only deliver; they never block in an inbox. An inbox knows no lock.

use std::time::Instant;

use crate::protocol::reply::Reply;
use crate::sync::primitives::{Condvar, Mutex, MutexGuard};
use crate::sync::threads;
use crate::time::clock;
use crate::time::deadline::earlier;
use crate::transport::job::ReplySink;

/// The wait primitive of one caller, its owner.
///
/// A wake-up that comes before the wait is kept until a wait consumes it, so none is lost.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Debug)]
struct InboxState {
    /// The open round. Replies of former rounds are dropped.
    round: u32,
    replies: Vec<(usize, Reply)>,
    /// The number of replies for which the owner sleeps; 0 if it does not sleep for replies.
    wake_at: usize,
    woken: bool,
    /// Whether all waits of the owner end at once from now on.
    cancelled: bool,
}

/// The reason why a wait for replies ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// The wanted number of replies has arrived.
    Complete,
    /// The deadline has passed. Some replies may have arrived.
    TimedOut,
    /// The owner was cancelled. Some replies may have arrived.
    Cancelled,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            state: Mutex::new(InboxState {
                round: 0,
                replies: Vec::new(),
                wake_at: 0,
                woken: false,
                cancelled: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Opens a round for up to `nodes` replies and returns its id.
    pub(crate) fn open_round(&self, nodes: usize) -> u32 {
        let mut state = self.state.lock();
        state.round = state.round.wrapping_add(1);
        state.replies.clear();
        state.replies.reserve(nodes);
        state.round
    }

    /// Closes the open round. Its further replies are dropped.
    pub(super) fn close_round(&self) {
        let mut state = self.state.lock();
        state.round = state.round.wrapping_add(1);
        state.replies = Vec::new();
    }

    /// Blocks until `wanted` replies have arrived, at most until `end`, and moves the replies into
    /// `replies`.
    ///
    /// Until `spin_until`, if that is before `end`, it yields the processor instead of sleeping:
    /// replies that arrive within microseconds take less time than sleeping and waking.
    pub(super) fn wait_replies(
        &self,
        wanted: usize,
        spin_until: Option<Instant>,
        end: Option<Instant>,
        replies: &mut Vec<(usize, Reply)>,
    ) -> WaitEnd {
        let spin_until = spin_until.and_then(|spin| earlier(Some(spin), end));
        let mut state = self.state.lock();
        let waits = |state: &InboxState| state.replies.len() < wanted && !state.cancelled;
        while waits(&state) && spin_until.is_some_and(|end| clock::now() < end) {
            drop(state); // unlock for the threads that deliver
            threads::yield_now();
            state = self.state.lock();
        }
        state.wake_at = wanted;
        let mut timed_out = false;
        while waits(&state) && !timed_out {
            timed_out = self.wait(&mut state, end);
        }
        let ended = match (state.replies.len() >= wanted, state.cancelled) {
            (true, _) => WaitEnd::Complete,
            (false, true) => WaitEnd::Cancelled,
            (false, false) => WaitEnd::TimedOut,
        };
        state.wake_at = 0;
        match replies.is_empty() {
            true => std::mem::swap(replies, &mut state.replies),
            false => replies.append(&mut state.replies),
        }
        ended
    }

    /// Returns whether fewer replies than `wanted` have arrived and the owner is not cancelled.
    pub(super) fn needs_more(&self, wanted: usize) -> bool {
        let state = self.state.lock();
        state.replies.len() < wanted && !state.cancelled
    }

    /// Wakes the owner from [`sleep`](Inbox::sleep), or ends its next sleep at once.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        state.woken = true;
        drop(state); // unlock before waking
        self.changed.notify_one();
    }

    /// Ends the owner's wait, and all its later waits at once.
    pub(crate) fn cancel(&self) {
        let mut state = self.state.lock();
        state.cancelled = true;
        drop(state); // unlock before waking
        self.changed.notify_one();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Blocks until a wake-up, at most until `end` (`None`: no limit). Returns whether one came.
    pub(crate) fn sleep(&self, end: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while !state.woken && !state.cancelled {
            if self.wait(&mut state, end) {
                break;
            }
        }
        std::mem::take(&mut state.woken)
    }

    /// Blocks once, possibly with a spurious wake-up. Returns whether the deadline has passed.
    fn wait(&self, state: &mut MutexGuard<'_, InboxState>, end: Option<Instant>) -> bool {
        match end {
            None => self.changed.wait(state),
            Some(end) => return self.changed.wait_until(state, end).timed_out(),
        }
        false
    }
}

impl ReplySink for Inbox {
    /// Stores a reply of the open round. Wakes the owner only when the wanted number is reached.
    fn deliver(&self, round: u32, node: usize, reply: Reply) {
        let mut state = self.state.lock();
        if state.round != round {
            return;
        }
        state.replies.push((node, reply));
        let is_complete = state.replies.len() == state.wake_at;
        drop(state); // unlock before waking
        if is_complete {
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
    fn replies_of_a_former_round_are_dropped() {
        let inbox = Inbox::new();
        let first = inbox.open_round(3);
        inbox.deliver(first, 0, Reply::Done);
        let second = inbox.open_round(3);
        inbox.deliver(first, 1, Reply::Done);
        inbox.deliver(second, 2, Reply::Absent);
        let mut replies = Vec::new();
        let ended = inbox.wait_replies(1, None, None, &mut replies);
        assert_eq!(ended, WaitEnd::Complete);
        assert_eq!(replies, [(2, Reply::Absent)]);
    }

    #[test]
    fn wait_that_times_out_returns_the_replies_so_far() {
        let inbox = Inbox::new();
        let round = inbox.open_round(3);
        inbox.deliver(round, 1, Reply::Done);
        let mut replies = Vec::new();
        let end = clock::now() + Duration::from_millis(5);
        assert_eq!(
            inbox.wait_replies(2, None, Some(end), &mut replies),
            WaitEnd::TimedOut
        );
        assert_eq!(replies.len(), 1);
    }

    #[test]
    fn wait_that_yields_ends_at_its_deadline() {
        let inbox = Inbox::new();
        inbox.open_round(3);
        let now = clock::now();
        let (end, spin_until) = (
            now + Duration::from_millis(5),
            now + Duration::from_secs(30),
        );
        let ended = inbox.wait_replies(1, Some(spin_until), Some(end), &mut Vec::new());
        assert_eq!(ended, WaitEnd::TimedOut);
        assert!(clock::now() < spin_until);
    }

    #[test]
    fn wake_up_before_the_sleep_is_kept_once() {
        let inbox = Inbox::new();
        inbox.wake();
        inbox.wake();
        assert!(inbox.sleep(None));
        assert!(!inbox.sleep(Some(clock::now())));
    }
}
