//! Attends the running command: passes signals on, and ends it when its lock is being lost.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::duration;
use crate::notes::Notes;
use crate::run::command::{Ended, Running};
use crate::run::event::Event;
use crate::run::loss::{LossPlan, Step};
use crate::run::options::OnLost;
use crate::run::repetition::Repetitions;
use crate::run::signals::{self, DefaultAction, Received};
use crate::run::witness::Witness;

/// How often a process group is looked at whose last process is awaited.
const GROUP_POLL: Duration = Duration::from_millis(20);

pub(crate) struct Supervisor<'a> {
    pub(crate) command: Running,
    pub(crate) loss: LossPlan,
    pub(crate) on_lost: OnLost,
    /// Present if the command is in the process group of this process.
    pub(crate) witness: Option<Witness>,
    pub(crate) waits_for_group: bool,
    pub(crate) key: &'a str,
    pub(crate) notes: &'a Notes,
    pub(crate) repetitions: Repetitions,
}

impl Supervisor<'_> {
    /// Blocks until the command has ended, and with it what is to end with it.
    pub(crate) fn attend(&mut self, inbox: &Receiver<Event>) -> Ended {
        loop {
            if let Some(ended) = self.command.ended()
                && !self.awaits_group()
            {
                return ended;
            }
            if let Some(event) = self.next_event(inbox) {
                self.on_event(event);
            }
            let due = self.loss.due(Instant::now());
            self.act(due);
        }
    }

    pub(crate) fn on_event(&mut self, event: Event) {
        match event {
            Event::Signal(signal) => self.on_signal(signal),
            Event::Danger { end: Some(end) } => self.on_danger(end),
            Event::Danger { end: None } => {
                self.loss.safe();
                self.warn("renewed again");
            }
            Event::Lost { has_expired } => self.on_loss(has_expired),
            Event::Acquired(_) => {}
        }
    }

    /// Returns whether processes of the group are waited for, after the command has ended.
    fn awaits_group(&self) -> bool {
        let is_awaited = self.waits_for_group || self.loss.kill_at().is_some();
        is_awaited && self.command.is_group_alive()
    }

    fn next_event(&self, inbox: &Receiver<Event>) -> Option<Event> {
        let now = Instant::now();
        let kill_at = self.loss.kill_at();
        let mut limit = kill_at.map(|end| end.saturating_duration_since(now));
        if self.command.ended().is_some() {
            limit = Some(limit.unwrap_or(GROUP_POLL).min(GROUP_POLL));
        }
        match limit {
            Some(limit) => match inbox.recv_timeout(limit) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(limit);
                    None
                }
            },
            None => inbox.recv().ok(),
        }
    }

    fn on_danger(&mut self, end: Instant) {
        let step = self.loss.endangered(end);
        self.act(step);
        let what = match self.on_lost {
            OnLost::Kill => "; the command is ended",
            OnLost::Warn => "",
        };
        let left = duration::rounded(end.saturating_duration_since(Instant::now()));
        self.warn(&format!("renewals fail, the lock ends in {left}{what}"));
    }

    fn on_loss(&mut self, has_expired: bool) {
        let step = self.loss.lost(has_expired, Instant::now());
        self.act(step);
        let what = match self.on_lost {
            OnLost::Kill => "is ended",
            OnLost::Warn => "goes on without it",
        };
        self.warn(&format!("the lock is lost; the command {what}"));
    }

    fn act(&self, step: Option<Step>) {
        match step {
            Some(Step::Term) => {
                self.command.signal(libc::SIGTERM);
                // A stopped process takes TERM only when it continues.
                self.command.signal(libc::SIGCONT);
            }
            Some(Step::Kill) => self.command.signal(libc::SIGKILL),
            None => {}
        }
    }

    fn on_signal(&mut self, signal: Received) {
        if signal.number == libc::SIGCHLD {
            self.command.reap();
            return;
        }
        if !self.repetitions.note(signal, Instant::now()) && !self.was_delivered(signal) {
            self.command.signal(signal.number);
        }
        if signals::default_action(signal.number) == DefaultAction::Stops {
            signals::stop_by(signal.number);
        }
    }

    fn was_delivered(&mut self, signal: Received) -> bool {
        let witness = self.witness.as_mut();
        witness.is_some_and(|witness| witness.has_seen(signal))
    }

    fn warn(&self, what: &str) {
        let text = format!("lock {:?}: {what}", self.key);
        let object = json!({ "warning": what, "key": self.key });
        self.notes.warn(&text, &object);
    }
}
