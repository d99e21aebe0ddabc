//! `watch`: who holds what, again and again.

use super::alt_screen::{self, Screen};
use super::diff::{Change, Watched};
use super::exit_error::Refusal;
use super::output::{Voice, shown};
use super::status::Survey;
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Ends a watch, from another thread.
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

    /// Whether it is said within that time.
    fn wait(&self, time: Duration) -> bool {
        let mut said = self.said.lock();
        self.changed.wait_while_for(&mut said, |said| !*said, time);
        *said
    }
}

/// Looks until it is told to stop, and ends within the time of a reply then. On a terminal it draws, elsewhere it writes.
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
    // It is gone with the other screen.
    for line in last {
        voice.write(&format!("{line}\n"))?;
    }
    Ok(0)
}

/// A line per change.
fn write(
    survey: &mut Survey,
    interval: Duration,
    stop: &Stop,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    let mut watched = Watched::default();
    loop {
        let Some((changes, _)) = look(survey, &mut watched, stop) else {
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

/// Answers what was on the screen last.
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
        let Some((_, now)) = look(survey, &mut watched, stop) else {
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

/// One look, and when it was; `None` if it was stopped, and may not have seen all.
fn look(survey: &mut Survey, watched: &mut Watched, stop: &Stop) -> Option<(Vec<Change>, Instant)> {
    let seen = survey.look(&|| !stop.is_said());
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
