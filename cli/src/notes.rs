//! Standard error: messages, and the log of the library.
//!
//! A thread of its own writes them, because standard error may be blocked (a stopped terminal, a
//! full pipe), and neither the command nor the renewal of its lock may wait for that.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::duration::millis;
use crate::failure::{Failure, Kind};

/// The lines that wait for a blocked standard error; further ones are dropped.
const MAX_WAITING: usize = 256;

/// The sources of lines about a lock that is lost or endangered. `run` tells that by itself, and what
/// follows.
const TOLD_BY_RUN: [&str; 2] = [
    "redguard::background::loss_handler",
    "redguard::background::loss_notifier",
];

/// How long the end of the program waits for a blocked standard error.
const END_LIMIT: Duration = Duration::from_secs(1);

/// How often that time is waited for the thread while standard error is not blocked: on a busy machine
/// the thread may not have run yet.
const MAX_END_LIMITS: u32 = 30;

/// A handle on the thread that writes to standard error.
#[derive(Clone)]
pub(crate) struct Notes {
    json: bool,
    queue: SyncSender<Line>,
}

enum Line {
    Text(String),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

impl Notes {
    /// Starts the thread, and sends the library's log to it.
    pub(crate) fn start(json: bool, level: LevelFilter) -> io::Result<Notes> {
        let (queue, lines) = mpsc::sync_channel(MAX_WAITING);
        let builder = thread::Builder::new().name("stderr".to_owned());
        builder.spawn(move || write_lines(&lines))?;
        let notes = Notes { json, queue };
        // An error says that there is a logger, which can only be this one.
        if log::set_boxed_logger(Box::new(Logger(notes.clone()))).is_ok() {
            log::set_max_level(level);
        }
        Ok(notes)
    }

    /// Writes a message; never blocks.
    pub(crate) fn warn(&self, text: &str, object: &Value) {
        self.line(text, object);
    }

    /// Reports a node that is not asked or does not reply.
    pub(crate) fn warn_of_node(&self, node: &str, cause: &str) {
        let object = json!({ "warning": cause, "node": node });
        self.line(&format!("{node} is left out: {cause}"), &object);
    }

    pub(crate) fn fail(&self, failure: &Failure, status: u8) {
        if failure.kind != Kind::Pipe {
            let mut object =
                json!({ "error": failure.line, "kind": failure.name(), "status": status });
            if let Some(holder) = &failure.holder {
                object["owner"] = json!(holder.owner);
                object["remaining_ms"] = json!(holder.remaining.map(millis));
            }
            self.line(&failure.line, &object);
        }
    }

    /// Writes an object unchanged, with `--json`.
    pub(crate) fn report(&self, object: &Value) {
        if self.json {
            self.send(format!("{object}\n"));
        }
    }

    fn line(&self, text: &str, object: &Value) {
        let text = if self.json {
            format!("{object}\n")
        } else {
            format!("redguard: {text}\n")
        };
        self.send(text);
    }

    fn send(&self, text: String) {
        // A full queue means a blocked standard error, for which nobody waits.
        let sent = self.queue.try_send(Line::Text(text));
        debug_assert!(!matches!(sent, Err(TrySendError::Disconnected(_))));
    }

    /// Blocks until all messages are written, for at most [`END_LIMIT`] if standard error is blocked.
    pub(crate) fn finish(&self) {
        let (written, answer) = mpsc::sync_channel(1);
        if self.queue.try_send(Line::Flush(written)).is_err() {
            return;
        }
        for _ in 0..MAX_END_LIMITS {
            let answered = answer.recv_timeout(END_LIMIT);
            if answered != Err(RecvTimeoutError::Timeout) || !is_writable(io::stderr().as_fd()) {
                return;
            }
        }
    }
}

/// Returns whether a line can be written without blocking.
pub(crate) fn is_writable(descriptor: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(descriptor, PollFlags::POLLOUT)];
    let count = poll(&mut asked, PollTimeout::ZERO);
    count == Ok(1) && asked[0].revents() == Some(PollFlags::POLLOUT)
}

fn write_lines(lines: &Receiver<Line>) {
    for line in lines {
        match line {
            // Standard error may be closed.
            Line::Text(text) => _ = io::stderr().write_all(text.as_bytes()),
            Line::Flush(written) => _ = written.send(()),
        }
    }
}

/// The library's log.
struct Logger(Notes);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("redguard") && !TOLD_BY_RUN.contains(&metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            let field = match record.level() {
                Level::Error | Level::Warn => "warning",
                _ => "info",
            };
            self.0.line(&text, &json!({ field: text }));
        }
    }

    fn flush(&self) {}
}

/// Returns the level for `-q` and `-v`: warnings by default, since a wrong password on one of three
/// nodes is to be seen the first night.
pub(crate) fn level(quiet: u8, verbose: u8) -> LevelFilter {
    match (quiet, verbose) {
        (0 | 1, 0) => LevelFilter::Warn,
        (0, 1) => LevelFilter::Info,
        (0, _) => LevelFilter::Debug,
        _ => LevelFilter::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_pipe_is_blocked_and_an_empty_one_is_not() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert!(is_writable(writer.as_fd()));
        let page = [b'x'; 4096];
        while is_writable(writer.as_fd()) {
            writer.write_all(&page).unwrap();
        }
        // Without a reader a write fails at once, and there is nothing to wait for.
        drop(reader);
        assert!(!is_writable(writer.as_fd()));
    }
}
