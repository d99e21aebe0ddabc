//! `watch`: shows the holders of locks repeatedly.

use super::alt_screen::{self, Screen};
use super::diff::{Change, Watched};
use super::exit_error::Refusal;
use super::output::{Voice, shown};
use super::status::Survey;
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Stops a watch from another thread.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    said: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn say(&self) {
        *self.said.lock() = true;
        self.changed.notify_all();
    }

    fn is_said(&self) -> bool {
        *self.said.lock()
    }

    /// Returns whether the stop arrives within this time.
    fn wait(&self, time: Duration) -> bool {
        let mut said = self.said.lock();
        self.changed.wait_while_for(&mut said, |said| !*said, time);
        *said
    }
}

/// Lists the locks until it is stopped, and then ends within the time of a reply. Draws on a
/// terminal, and writes lines elsewhere.
pub(crate) fn watch(
    survey: &mut Survey,
    interval: Duration,
    stop: &Stop,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    if voice.json || !alt_screen::is_there() {
        return write(survey, interval, stop, voice);
    }
    let last = draw(survey, interval, stop, voice)?;
    // The alternate screen has removed the table, so it is written again.
    for line in last {
        voice.write(&format!("{line}\n"))?;
    }
    Ok(0)
}

/// Writes a line per change.
fn write(
    survey: &mut Survey,
    interval: Duration,
    stop: &Stop,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    let mut watched = Watched::default();
    loop {
        let Some((changes, _)) = list_once(survey, &mut watched, stop) else {
            return Ok(0);
        };
        let time = clock();
        for change in changes {
            let text = format!("{time} {}", change.text());
            voice.tell(&text, &change.object(&time))?;
        }
        if stop.wait(interval) {
            return Ok(0);
        }
    }
}

/// Redraws the table. Returns its latest lines.
fn draw(
    survey: &mut Survey,
    interval: Duration,
    stop: &Stop,
    voice: &mut Voice<'_>,
) -> Result<Vec<String>, Refusal> {
    let what = shown(&survey.what);
    let every = humantime::format_duration(interval);
    let mut screen = Screen::enter(voice)?;
    let mut watched = Watched::default();
    let mut lines = Vec::new();
    loop {
        let Some((_, now)) = list_once(survey, &mut watched, stop) else {
            return Ok(lines);
        };
        let title = format!("{what}, every {every}, at {}; Ctrl-C ends it", clock());
        lines = alt_screen::frame(&title, &watched, now);
        screen.draw(&lines)?;
        if stop.wait(interval) {
            return Ok(lines);
        }
    }
}

/// Lists once, with the time; returns `None` if it was stopped and may be incomplete.
fn list_once(
    survey: &mut Survey,
    watched: &mut Watched,
    stop: &Stop,
) -> Option<(Vec<Change>, Instant)> {
    let seen = survey.list(&|| !stop.is_said());
    #[expect(
        clippy::disallowed_methods,
        reason = "only the library's clock has an owner"
    )]
    let now = Instant::now();
    if stop.is_said() {
        return None;
    }
    let changes = watched.update(seen.map_err(|refusal| refusal.line), now);
    Some((changes, now))
}

fn clock() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
