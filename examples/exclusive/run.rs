//! `run`: runs a command under a lock.

use super::NO_GRACE;
use super::cli::{Common, OnLost, Run};
use super::exit_error::{Kind, Refusal, killed_by};
use super::output::Voice;
use super::signals::Signals;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redguard::{CancelToken, LockOptions, Locker, RedisLocker};
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;
use std::{io, thread};

/// Time between SIGTERM and SIGKILL after the loss of the lock.
const KILL_DELAY: Duration = Duration::from_secs(5);

pub(crate) fn run(run: &Run, common: &Common, voice: &mut Voice<'_>) -> Result<u8, Refusal> {
    // Before any thread starts, because threads inherit the block.
    let signals = Signals::block()?;
    let locker = common.connect()?;
    let ended = run_locked(run, &locker, &signals, voice);
    // Sends the queued releases, also those that undo a failed attempt.
    _ = locker.nodes().shutdown(NO_GRACE);
    ended
}

/// Acquires the lock and runs the command. The guard releases the lock on every return.
fn run_locked(
    run: &Run,
    locker: &RedisLocker,
    signals: &Signals,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    let (events, inbox) = mpsc::channel();
    let stop = CancelToken::new();
    signals.listen({
        let (stop, events) = (stop.clone(), events.clone());
        move |signal| {
            if FIRST.set(Some(signal)).is_ok() {
                stop.cancel();
            } else {
                _ = events.send(Event::Signal(signal));
            }
        }
    })?;
    let lost = events.clone();
    let mut options = LockOptions::new(*run.ttl)
        .auto_renew(true)
        .cancel_on(&stop)
        .on_lost(move |_| _ = lost.send(Event::Lost));
    if let Some(limit) = run.wait {
        options = options.wait_for(*limit);
    } else if run.no_wait {
        options = options.wait_for(Duration::ZERO);
    }
    let acquired = locker.acquire(&run.key, &options);
    if let Some(signal) = FIRST.get_or_init(|| None) {
        let line = format!("{signal} while waiting for the lock");
        return Err(Refusal::new(Kind::Signal(*signal as i32), line));
    }
    let guard = acquired.map_err(|error| Refusal::of_lock(&run.key, error))?;
    let child = start(run, signals)?;
    let (status, told) = attend(child, run, events, &inbox, voice)?;
    match guard.release() {
        Err(error) if !told => {
            let object = json!({ "warning": error.to_string(), "key": run.key });
            voice.warn(&format!("release failed: {error}"), &object);
        }
        _ => {}
    }
    Ok(status)
}

/// The first event: the acquire (`None`) or a signal that ends the wait for the lock.
static FIRST: OnceLock<Option<Signal>> = OnceLock::new();

enum Event {
    Ended(io::Result<ExitStatus>),
    Signal(Signal),
    /// The lock was lost.
    Lost,
}

fn start(run: &Run, signals: &Signals) -> Result<Child, Refusal> {
    let [program, args @ ..] = &run.command[..] else {
        return Err(Refusal::new(Kind::Usage, "no command was given"));
    };
    signals.spawn(program, args).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::NotExecutable,
        };
        Refusal::new(kind, format!("{}: {error}", program.display()))
    })
}

/// Blocks until the command has ended. Returns its status, and whether the loss of the lock was
/// reported.
fn attend(
    mut child: Child,
    run: &Run,
    events: Sender<Event>,
    inbox: &Receiver<Event>,
    voice: &mut Voice<'_>,
) -> io::Result<(u8, bool)> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut told = false;
    let mut patience = Duration::MAX;
    thread::scope(|scope| {
        scope.spawn(move || events.send(Event::Ended(child.wait())));
        loop {
            match inbox.recv_timeout(patience) {
                Ok(Event::Ended(status)) => return Ok((status_of(status?), told)),
                // The terminal sends the other signals to the whole process group, so to the
                // command too.
                Ok(Event::Signal(Signal::SIGTERM)) => _ = kill(pid, Signal::SIGTERM),
                Ok(Event::Signal(_)) => {}
                Ok(Event::Lost) => {
                    told = true;
                    let what = match run.on_lost {
                        OnLost::Kill => "is ended",
                        OnLost::Warn => "goes on without it",
                    };
                    let text = format!("the lock is lost; the command {what}");
                    voice.warn(&text, &json!({ "warning": text, "key": run.key }));
                    if run.on_lost == OnLost::Kill {
                        _ = kill(pid, Signal::SIGTERM);
                        patience = KILL_DELAY;
                    }
                }
                Err(_) => {
                    _ = kill(pid, Signal::SIGKILL);
                    patience = Duration::MAX;
                }
            }
        }
    })
}

fn status_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (_, signal) => killed_by(signal.unwrap_or(0)),
    }
}
