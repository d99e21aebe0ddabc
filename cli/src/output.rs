//! Results on standard output: lines for people, or with `--json` one object per line.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Writes one result.
    pub(crate) fn tell(self, text: &str, object: &Value) -> io::Result<()> {
        if self.json {
            self.write(&format!("{object}\n"))
        } else {
            self.write(&format!("{text}\n"))
        }
    }

    /// Writes a text unchanged.
    pub(crate) fn write(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// How a line is shown where colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Yellow,
}

impl Paint {
    /// Returns the line with its end.
    pub(crate) fn on(self, line: &str) -> String {
        match self {
            Paint::Bold if has_colours() => format!("\x1b[1m{line}\x1b[0m\n"),
            Paint::Yellow if has_colours() => format!("\x1b[33m{line}\x1b[0m\n"),
            _ => format!("{line}\n"),
        }
    }
}

/// Returns whether colours may be used on standard output (https://no-color.org).
pub(crate) fn has_colours() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !no_color && !dumb
}

/// Escapes control characters. Names and labels come from the nodes, where any client may have
/// stored them.
pub(crate) fn shown(text: &str) -> String {
    let spelt = |c: char| match c {
        '"' | '\'' => c.to_string(),
        _ => c.escape_debug().to_string(),
    };
    text.chars().map(spelt).collect()
}

/// Returns the header and a line per row, in aligned columns; the last column is not padded.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let header = header.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let mut widths = [0; N];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| padded(cell, width));
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    };
    all().map(line).collect()
}

/// Returns a text with blanks up to a width.
pub(crate) fn padded(text: &str, width: usize) -> String {
    let blanks = width.saturating_sub(text.width());
    format!("{text}{}", " ".repeat(blanks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_the_width_of_their_widest_cell() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let rows = [row("日本", "x"), row("a", ""), row("", "long")];
        let lines = ["KEY   B", "日本  x", "a", "      long"];
        assert_eq!(table(["KEY", "B"], &rows), lines);
        assert_eq!(table(["KEY", "B"], &[]), ["KEY  B"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(shown("a\x1b[2J\u{202e}\"'"), r#"a\u{1b}[2J\u{202e}"'"#);
    }
}
