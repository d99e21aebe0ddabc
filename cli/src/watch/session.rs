//! One run of `watch`: a table on a terminal, or a line per change.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossterm::event::{self, Event, KeyEvent, KeyEventKind};

use crate::args::{Selection, wants_json};
use crate::config::Settings;
use crate::failure::{Failure, Result};
use crate::locks::survey::Seen;
use crate::output::Output;
use crate::run::signals;
use crate::watch::changes::Watched;
use crate::watch::frame::frame;
use crate::watch::rounds::Rounds;
use crate::watch::screen::{self, Screen};
use crate::watch::stop::Stop;
use crate::watch::view::{Request, View};

/// How often the screen is redrawn at least, for the times in it; also the limit of a key's delay.
const REDRAW: Duration = Duration::from_millis(100);

/// Lists the locks until it is stopped, and then ends within the time of a reply.
///
/// # Errors
/// The failure of the first list: later ones are waited out.
pub(crate) fn watch(
    selection: &Selection,
    interval: Duration,
    settings: &Settings,
    stop: Stop,
) -> Result<u8> {
    if interval.is_zero() {
        return Err(Failure::usage("--interval must be above 0"));
    }
    let json = wants_json(&crate::args::of_process());
    let mut rounds = Rounds::new(settings, &selection.pattern, interval)?;
    let title = rounds.title();
    let (first, pause) = rounds.list(&stop);
    if stop.is_set() {
        return Ok(0);
    }
    let first = first?;
    let lists = start(rounds, pause, stop.clone())?;
    if !json && screen::is_there() {
        let mut table = Table {
            title,
            watched: Watched::default(),
            view: View::new(selection.sort),
            stop,
            keys: read_keys()?,
        };
        match table.show(first, &lists) {
            Err(_) if screen::is_gone() => Ok(0),
            ended => ended,
        }
    } else {
        write(first, &lists, Output { json })
    }
}

type List = std::result::Result<Seen, String>;

/// Lists in a thread until `stop` is set or the receiver is gone.
fn start(mut rounds: Rounds, mut pause: Duration, stop: Stop) -> Result<Receiver<List>> {
    let (lists, received) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name("lists".to_owned());
    builder.spawn(move || {
        while !stop.wait(pause) {
            let (seen, next) = rounds.list(&stop);
            pause = next;
            // The last list may be incomplete.
            if stop.is_set() || lists.send(seen.map_err(|failure| failure.line)).is_err() {
                return;
            }
        }
    })?;
    Ok(received)
}

/// Writes a line per change.
fn write(first: Seen, lists: &Receiver<List>, output: Output) -> Result<u8> {
    let mut watched = Watched::default();
    for list in std::iter::once(Ok(first)).chain(lists) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        for change in watched.update(list, Instant::now()) {
            let text = format!("{time} {}", change.text());
            output.tell(&text, &change.object(&time))?;
        }
    }
    Ok(0)
}

/// Reads keys in a thread, because `crossterm` does not return once the terminal is gone. `None` is
/// any other event, a new size for example.
fn read_keys() -> Result<Receiver<Option<KeyEvent>>> {
    let (keys, received) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name("keys".to_owned());
    builder.spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind != KeyEventKind::Release => Some(key),
                _ => None,
            };
            if keys.send(key).is_err() {
                return;
            }
        }
    })?;
    Ok(received)
}

/// The table on a terminal.
struct Table {
    title: String,
    watched: Watched,
    view: View,
    stop: Stop,
    keys: Receiver<Option<KeyEvent>>,
}

impl Table {
    fn show(&mut self, first: Seen, lists: &Receiver<List>) -> Result<u8> {
        self.watched.update(Ok(first), Instant::now());
        let screen = Screen::enter()?;
        let mut request = Request::Redraw;
        let mut drawn = Vec::new();
        while request != Request::Quit && !self.stop.is_set() && !screen::is_gone() {
            match lists.recv_timeout(Duration::ZERO) {
                Ok(list) => _ = self.watched.update(list, Instant::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let frame = frame(
                &self.title,
                &self.watched,
                &self.view,
                Instant::now(),
                Screen::size(),
            );
            self.view.top = self.view.top.min(frame.rows.saturating_sub(frame.page));
            // Nothing is sent for an unchanged screen, which may be far away.
            if drawn != frame.lines {
                screen.draw(&frame.lines)?;
                drawn = frame.lines;
            }
            request = self.next_request(frame.page, frame.rows);
            if request == Request::Suspend {
                screen.leave()?;
                signals::stop_by(libc::SIGTSTP);
                screen.resume()?;
                drawn = Vec::new();
            }
        }
        self.stop.set();
        Ok(0)
    }

    /// Waits for a key, at most until the next redraw.
    fn next_request(&mut self, page: usize, rows: usize) -> Request {
        match self.keys.recv_timeout(REDRAW) {
            Ok(Some(key)) => self.view.press(key, page, rows),
            Ok(None) | Err(RecvTimeoutError::Timeout) => Request::Redraw,
            Err(RecvTimeoutError::Disconnected) => Request::Quit,
        }
    }
}
