//! The alternate screen of a terminal, on which a table is redrawn in place.

use super::diff::{Watch, Watched};
use super::lock_row::in_seconds;
use super::output::Voice;
use super::status::columns;
use super::table::table;
use console::{Term, truncate_str};
use std::io::{self, IsTerminal};
use std::time::Instant;

// Sequences that all current terminals support (ECMA-48, and xterm's 1049): a few bytes over ssh.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Returns whether standard output is a terminal that supports drawing.
pub(crate) fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !dumb
}

/// The entered alternate screen; left on drop.
pub(crate) struct Screen<'a, 'b> {
    voice: &'a mut Voice<'b>,
}

impl<'a, 'b> Screen<'a, 'b> {
    pub(crate) fn enter(voice: &'a mut Voice<'b>) -> io::Result<Screen<'a, 'b>> {
        voice.write(ENTER)?;
        Ok(Screen { voice })
    }

    /// Draws in one write, without clearing first, to avoid flicker.
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let (rows, columns) = Term::stdout().size();
        let mut text = HOME.to_owned();
        for line in fit(lines, rows.into()) {
            // Not up to the edge, because clearing the rest would delete the last character.
            text += &truncate_str(&line, usize::from(columns).saturating_sub(1), "…");
            text += CLEAR_LINE;
            text.push('\n');
        }
        text += CLEAR_BELOW;
        self.voice.write(&text)
    }
}

impl Drop for Screen<'_, '_> {
    fn drop(&mut self) {
        _ = self.voice.write(LEAVE);
    }
}

/// Returns the lines of the screen: a title, failures, and the table.
pub(crate) fn frame(title: &str, watched: &Watched, now: Instant) -> Vec<String> {
    let mut lines = vec![title.to_owned()];
    if let Some(cause) = &watched.trouble {
        lines.push(format!("Holders are unknown, the table is older: {cause}"));
    }
    let absent = watched.absent.iter();
    lines.extend(absent.map(|(node, cause)| format!("{node} is left out: {cause}")));
    lines.push(String::new());
    let row = |Watch { lock, first }: &Watch| {
        let [key, holder, nodes, ends] = columns(lock);
        [key, holder, nodes, ends, in_seconds(now - *first)]
    };
    let rows: Vec<_> = watched.locks.values().map(row).collect();
    let header = ["KEY", "HOLDER", "NODES", "ENDS IN", "SEEN FOR"];
    lines.extend(table(header, &rows));
    lines
}

/// Returns the lines that fit, and the number of further lines. The last line is for the cursor.
fn fit(lines: &[String], rows: usize) -> Vec<String> {
    let room = rows.saturating_sub(1);
    if lines.len() <= room {
        return lines.to_vec();
    }
    let shown = room.saturating_sub(1);
    let mut fitting = lines[..shown].to_vec();
    fitting.push(format!("… {} more", lines.len() - shown));
    fitting
}

#[cfg(test)]
mod tests {
    use super::super::lock_row::Lock;
    use super::super::scan::Absent;
    use super::super::status::Seen;
    use super::*;
    use std::time::Duration;

    #[test]
    fn frame_has_title_failures_and_table() {
        #[expect(clippy::disallowed_methods, reason = "the test accepts any moment")]
        let start = Instant::now();
        let lock = |key: &str, owner: Option<&str>, nodes| Lock {
            key: key.to_owned(),
            owner: owner.map(str::to_owned),
            remaining: Some(Duration::from_millis(9_876)),
            nodes,
            needed: 2,
            total: 3,
        };
        let mut watched = Watched::default();
        let seen = Seen {
            locks: vec![
                lock("a", Some("web-7/1"), 3),
                lock("b\x1b[2J\u{202e}", None, 1),
            ],
            absent: vec![Absent {
                node: "n:3".to_owned(),
                cause: "down".to_owned(),
            }],
        };
        watched.update(Ok(seen), start);
        watched.update(Err("no quorum".to_owned()), start);
        let lines = frame("title", &watched, start + Duration::from_millis(61_900));
        let wanted = [
            "title",
            "Holders are unknown, the table is older: no quorum",
            "n:3 is left out: down",
            "",
            "KEY                     HOLDER      NODES            ENDS IN  SEEN FOR",
            "a                       web-7/1     3/3              9s       1m 1s",
            r"b\u{1b}[2J\u{202e}      (no label)  1/3 (no quorum)  9s       1m 1s",
        ];
        let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        for (line, wanted) in lines.iter().zip(wanted) {
            assert_eq!(squeezed(line), squeezed(wanted));
        }
        assert_eq!(lines.len(), wanted.len());
    }

    #[test]
    fn lines_beyond_the_screen_are_counted() {
        let lines: Vec<String> = (0..9).map(|line| line.to_string()).collect();
        assert_eq!(fit(&lines, 10), lines);
        assert_eq!(fit(&lines, 4), ["0", "1", "… 7 more"]);
        assert_eq!(fit(&lines, 0), ["… 9 more"]);
    }
}
