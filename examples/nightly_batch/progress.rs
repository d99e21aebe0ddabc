//! Progress while the batch runs: a bar on a terminal, else only lines for what happens to the
//! nodes.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 40;

pub(crate) struct Progress {
    began: Instant,
    files: usize,
    is_terminal: bool,
    shown: String,
}

impl Progress {
    pub(crate) fn start(files: usize) -> Progress {
        Progress {
            began: now(),
            files,
            is_terminal: io::stdout().is_terminal(),
            shown: String::new(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        now() - self.began
    }

    /// Draws the bar if it has changed.
    pub(crate) fn show(&mut self, rows: usize, down: usize) {
        let line = self.line(rows, down);
        if self.is_terminal && line != self.shown {
            write(&format!("\r{line}\x1b[K"));
            self.shown = line;
        }
    }

    fn line(&self, rows: usize, down: usize) -> String {
        let full = rows.min(self.files) * WIDTH / self.files.max(1);
        let bar: String = (0..WIDTH)
            .map(|at| if at < full { '█' } else { '░' })
            .collect();
        let files = self.files;
        let down = match down {
            0 => String::new(),
            n => format!(", {n} node down"),
        };
        format!(
            "{bar} {rows}/{files} files, {:.1} s{down}",
            self.elapsed().as_secs_f64()
        )
    }

    /// Prints a line above the bar, with the time.
    pub(crate) fn tell(&mut self, line: &str) {
        let at = self.elapsed().as_secs_f64();
        let erase = if self.is_terminal { "\r\x1b[K" } else { "" };
        write(&format!("{erase}{at:6.1} s  {line}\n"));
        self.shown.clear();
    }

    /// Removes the bar; returns the time since the start.
    pub(crate) fn end(self) -> Duration {
        if self.is_terminal {
            write("\r\x1b[K");
        }
        self.elapsed()
    }
}

#[expect(clippy::disallowed_methods, reason = "an example reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn write(text: &str) {
    let mut out = io::stdout().lock();
    // A closed terminal does not end the batch.
    _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
