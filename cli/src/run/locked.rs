//! From the arguments of `run` to its status.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Settings;
use crate::duration::{in_seconds, millis};
use crate::failure::{Failure, Kind, LOST, Result};
use crate::notes::Notes;
use crate::run::acquire::{self, Plan, Progress};
use crate::run::command::{self, Ended};
use crate::run::event::{Acquired, Event};
use crate::run::loss::LossPlan;
use crate::run::options::{OnLost, RunOptions};
use crate::run::owner;
use crate::run::repetition::Repetitions;
use crate::run::signals::{self, DefaultAction, Received, Signals};
use crate::run::supervise::Supervisor;
use crate::run::witness::Witness;
use crate::sys::ChildSetup;

/// Runs the command of the options under its lock. Returns the exit status.
pub(crate) fn run(
    options: RunOptions,
    settings: Settings,
    signals: Signals,
    notes: &Notes,
) -> Result<u8> {
    options.validate()?;
    let start = Instant::now();
    // A lock that is kept for a while lives for as long, unless the operator says otherwise.
    let least = options.at_least.unwrap_or_default();
    let ttl = options.ttl.unwrap_or_else(|| settings.ttl.max(least));
    let owner = options.owner.clone().or_else(|| settings.owner.clone());
    let plan = Plan {
        ttl,
        grace: options.grace_of(ttl),
        owner: owner.unwrap_or_else(owner::default_label),
        options: options.clone(),
        settings,
        start,
    };
    plan.validate()?;
    let (owner, grace) = (plan.owner.clone(), plan.grace);
    let (events, inbox) = mpsc::channel();
    let progress = Arc::new(Progress::default());
    let told = events.clone();
    signals.listen(move |signal| _ = told.send(Event::Signal(signal)))?;
    acquire::start(plan, Arc::clone(&progress), events, notes.clone())?;
    let (acquired, notice) = wait_for_lock(&inbox, &progress)?;
    let waited = start.elapsed();
    let locked = Locked {
        options,
        signals,
        owner,
        ttl,
        grace,
        waited,
        acquired,
    };
    locked.run(notice, &inbox, notes)
}

/// Blocks until the lock is acquired, or a signal ends the wait. Returns the lock, and the notice
/// of its loss or danger, which comes from another thread, and so perhaps before the lock itself.
///
/// # Errors
/// As the acquisition, and `Signal`.
fn wait_for_lock(
    inbox: &Receiver<Event>,
    progress: &Progress,
) -> Result<(Acquired, Option<Event>)> {
    let mut ended_by: Option<Received> = None;
    let mut notice = None;
    for event in inbox {
        match event {
            Event::Acquired(acquired) => match ended_by {
                None => return acquired.map(|acquired| (*acquired, notice)),
                Some(signal) => {
                    if let Ok(acquired) = acquired {
                        // Its result does not matter, since nothing was done under the lock.
                        let _ = acquired.guard.release();
                        let _ = acquired.nodes.shutdown(Duration::ZERO);
                    }
                    return Err(ended_while_waiting(signal));
                }
            },
            Event::Signal(signal) => match signals::default_action(signal.number) {
                DefaultAction::Ends if ended_by.is_none() => {
                    ended_by = Some(signal);
                    if progress.stop() {
                        return Err(ended_while_waiting(signal));
                    }
                }
                DefaultAction::Stops => signals::stop_by(signal.number),
                DefaultAction::Ends | DefaultAction::Nothing => {}
            },
            Event::Danger { end: None } => notice = None,
            Event::Danger { .. } | Event::Lost { .. } => notice = Some(event),
        }
    }
    Err(Failure::new(Kind::System, "the acquiring thread has ended"))
}

fn ended_while_waiting(signal: Received) -> Failure {
    let name = signals::name_of(signal.number);
    let line = format!("{name} while waiting for the lock");
    Failure::new(Kind::Signal(signal.number), line)
}

/// An acquired lock, and the command to run under it.
struct Locked {
    options: RunOptions,
    signals: Signals,
    owner: String,
    ttl: Duration,
    grace: Duration,
    waited: Duration,
    acquired: Acquired,
}

impl Locked {
    fn run(self, notice: Option<Event>, inbox: &Receiver<Event>, notes: &Notes) -> Result<u8> {
        let held_since = Instant::now();
        let key = self.options.name();
        let own_group = self.options.has_own_group(has_terminal());
        if self.options.wait_for_group {
            become_subreaper();
        }
        let witness = if own_group {
            None
        } else {
            // Without it each signal is passed on.
            Witness::start().ok()
        };
        let setup = ChildSetup {
            mask: self.signals.original,
            ignores_sigpipe: crate::sys::was_pipe_ignored(),
            dies_with_parent: self.options.die_with_parent,
            missed: witness.as_ref().map(Witness::missed_signals),
        };
        let started = self.check_held().and_then(|()| {
            command::start(&self.options.command, &self.variables(), setup, own_group)
        });
        let command = match started {
            Ok(command) => command,
            Err(failure) => {
                self.release();
                return Err(failure);
            }
        };
        let mut supervisor = Supervisor {
            command,
            loss: LossPlan::new(self.options.on_lost == OnLost::Kill, self.grace),
            on_lost: self.options.on_lost,
            witness,
            waits_for_group: self.options.wait_for_group,
            key: &key,
            notes,
            repetitions: Repetitions::default(),
        };
        if let Some(notice) = notice {
            supervisor.on_event(notice);
        }
        let ended = supervisor.attend(inbox);
        let has_failed = supervisor.loss.has_failed();
        Ok(self.conclude(ended, has_failed, held_since, notes))
    }

    /// Checks that the lock has not been lost since its acquisition, for which this process may have
    /// been stopped long enough.
    fn check_held(&self) -> Result<()> {
        if self.acquired.guard.watch().is_held() {
            return Ok(());
        }
        let key = self.options.name();
        let line = format!("lock {key:?}: lost before the start of the command");
        Err(Failure::new(Kind::Lost, line))
    }

    /// Releases the lock, and returns the exit status.
    fn conclude(self, ended: Ended, has_failed: bool, held_since: Instant, notes: &Notes) -> u8 {
        let key = self.options.name();
        let mut report = json!({
            "key": key,
            "waited_ms": millis(self.waited),
            "fencing_token": self.acquired.guard.fencing_token(),
            "permit": self.acquired.guard.permit(),
            "command_status": ended.status(),
        });
        let is_interrupted = ended == Ended::Signalled(libc::SIGINT);
        let was_lost_before = self.acquired.guard.watch().loss_reason().is_some();
        let error = self.release();
        let is_lost = error.as_ref().is_some_and(redguard::Error::is_lost);
        let lost = has_failed || is_lost;
        if let Some(error) = &error
            && !was_lost_before
        {
            let text = format!("release failed: {error}");
            notes.warn(&text, &json!({ "warning": text, "key": key }));
        }
        let status = if lost { LOST } else { ended.status() };
        report["held_ms"] = millis(held_since.elapsed()).into();
        report["lost"] = Value::Bool(lost);
        report["status"] = status.into();
        notes.report(&report);
        if is_interrupted && !lost {
            notes.finish();
            signals::end_by_interrupt();
        }
        status
    }

    /// Releases the lock. Returns the error, if there is one.
    fn release(self) -> Option<redguard::Error> {
        let Acquired { nodes, guard } = self.acquired;
        let released = guard.release();
        // The release is what counts; what is left of the threads ends with the process.
        let _ = nodes.shutdown(Duration::ZERO);
        released.err()
    }

    /// Returns the environment of the command. Variables of another `run` around it do not pass.
    fn variables(&self) -> Vec<(&'static str, Option<String>)> {
        let (token, permit) = (
            self.acquired.guard.fencing_token(),
            self.acquired.guard.permit(),
        );
        vec![
            ("REDGUARD_KEY", Some(self.options.name())),
            ("REDGUARD_TTL", Some(in_seconds(self.ttl))),
            ("REDGUARD_OWNER", Some(self.owner.clone())),
            (
                "REDGUARD_FENCING_TOKEN",
                token.map(|token| token.to_string()),
            ),
            ("REDGUARD_PERMIT", permit.map(|permit| permit.to_string())),
        ]
    }
}

/// Returns whether this process has a controlling terminal.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Makes orphans of the command children of this process, so that their end is noticed (Linux).
fn become_subreaper() {
    #[cfg(target_os = "linux")]
    // Without it the group is looked at all the same.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use log::LevelFilter;
    use nix::sys::signal::SigSet;
    use redguard::{Config, LockOptions, Locker, Nodes, RedisLocker};
    use redguard_servers::Server;

    use super::*;
    use crate::args::{self, Command};
    use crate::run::guard::Guard;

    const TTL: Duration = Duration::from_secs(3600);

    /// Only bounds a failure.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Acquires the lock `k`.
    fn acquire(server: &Server) -> Acquired {
        let nodes = Nodes::connect(Config::new([server.addr()])).unwrap();
        let locker = RedisLocker::new(&nodes);
        let guard = locker.acquire("k", &LockOptions::new(TTL)).unwrap();
        let guard = Guard::Lock(guard);
        Acquired { nodes, guard }
    }

    /// Waits for an acquired lock, before which this notice is sent.
    fn wait(notice: Event, acquired: Acquired) -> (Acquired, Option<Event>) {
        let (events, inbox) = mpsc::channel();
        events.send(notice).unwrap();
        let acquired = Event::Acquired(Ok(Box::new(acquired)));
        events.send(acquired).unwrap();
        wait_for_lock(&inbox, &Progress::default()).unwrap()
    }

    #[test]
    fn danger_that_is_told_before_the_acquisition_is_kept() {
        let server = Server::start().unwrap();
        let end = Instant::now();
        let (_, notice) = wait(Event::Danger { end: Some(end) }, acquire(&server));
        let Some(Event::Danger { end: Some(told) }) = notice else {
            panic!("no notice")
        };
        assert_eq!(told, end);
    }

    #[test]
    fn lock_that_is_lost_before_the_command_starts_is_70_without_the_command() {
        let server = Server::start().unwrap();
        let acquired = acquire(&server);
        let locker = RedisLocker::new(&acquired.nodes);
        assert!(locker.force_release("k").unwrap());
        let Guard::Lock(guard) = &acquired.guard else {
            panic!("another kind")
        };
        assert!(guard.extend(TTL).unwrap_err().is_lost());
        let (acquired, notice) = wait(Event::Lost { has_expired: false }, acquired);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ran");
        let words = ["redguard", "run", "--key", "k", "--group", "--", "touch"];
        let mut words: Vec<_> = words.iter().map(OsString::from).collect();
        words.push(file.clone().into());
        let parsed = args::parse(&words).unwrap().unwrap();
        let Command::Run(options) = parsed.command else {
            panic!("another command")
        };
        let locked = Locked {
            options: *options,
            signals: Signals {
                original: SigSet::empty(),
            },
            owner: String::new(),
            ttl: TTL,
            grace: Duration::ZERO,
            waited: Duration::ZERO,
            acquired,
        };
        let notes = Notes::start(false, LevelFilter::Off).unwrap();
        let (_events, inbox) = mpsc::channel();
        let (ended, result) = mpsc::channel();
        // In a thread, since a command that is started after all would be waited for.
        std::thread::spawn(move || ended.send(locked.run(notice, &inbox, &notes)));
        let failure = result.recv_timeout(LIMIT).unwrap().unwrap_err();
        assert_eq!((failure.status(), failure.name()), (LOST, "lost"));
        let line = "lock \"k\": lost before the start of the command";
        assert_eq!(failure.line, line);
        assert!(!file.exists());
    }
}
