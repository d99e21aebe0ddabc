//! The lines of the screen, for any width and height. Pure.

use std::time::Instant;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::args::SortBy;
use crate::duration::whole_seconds;
use crate::locks::row::LockRow;
use crate::locks::survey::sort;
use crate::output::{padded, shown};
use crate::status::columns;
use crate::watch::changes::{Watched, WatchedLock};
use crate::watch::view::View;

/// A line with the way it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Header,
    /// A holder without a quorum.
    Faint,
    Trouble,
}

/// A screen, and how many rows of the table it shows.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) lines: Vec<Line>,
    /// The rows of the table that the filter selects.
    pub(crate) rows: usize,
    /// The rows that fit.
    pub(crate) page: usize,
}

/// The columns, and which goes first where the screen is narrow: the greatest number.
const HEADER: [(&str, u8); 7] = [
    ("KEY", 0),
    ("KIND", 3),
    ("HOLDER", 1),
    ("NODES", 4),
    ("ENDS IN", 0),
    ("WAIT", 2),
    ("HELD FOR", 5),
];

/// The columns that are cut where the screen is narrow.
const FLEXIBLE: [usize; 2] = [0, 2];

/// The least width of a cut column.
const MIN_FLEXIBLE: usize = 8;

const GAP: usize = 2;

/// Draws a screen of `width` and `height`: a title, troubles, the table, and a line of keys.
pub(crate) fn frame(
    title: &str,
    watched: &Watched,
    view: &View,
    now: Instant,
    (width, height): (usize, usize),
) -> Frame {
    let mut lines = vec![line(&shown(title), Style::Plain)];
    if let Some(cause) = &watched.trouble {
        let text = format!("Holders are unknown, the table is older: {cause}");
        lines.push(line(&shown(&text), Style::Trouble));
    }
    let absent = watched.absent.iter();
    lines.extend(
        absent.map(|(node, cause)| line(&format!("{node} is left out: {cause}"), Style::Trouble)),
    );
    let (rows, cells) = selected(watched, view, now);
    let table = layout(&cells, width);
    lines.extend(table.first().map(|header| line(header, Style::Header)));
    // One line is for the keys.
    let page = height.saturating_sub(lines.len() + 1);
    let visible = table.iter().skip(1).zip(&rows).skip(view.top).take(page);
    lines.extend(visible.map(|(text, row)| {
        let style = if row.is_held() {
            Style::Plain
        } else {
            Style::Faint
        };
        line(text, style)
    }));
    lines.truncate(height.saturating_sub(1));
    lines.push(line(&footer(view, rows.len(), page), Style::Plain));
    lines.truncate(height);
    for line in &mut lines {
        line.text = cut(&line.text, width);
    }
    Frame {
        lines,
        rows: rows.len(),
        page,
    }
}

fn line(text: &str, style: Style) -> Line {
    Line {
        text: text.to_owned(),
        style,
    }
}

/// Returns the rows that the filter selects, in their order, with their cells.
fn selected(watched: &Watched, view: &View, now: Instant) -> (Vec<LockRow>, Vec<[String; 7]>) {
    let filter = view.filter.to_lowercase();
    let matches = |row: &LockRow| {
        let text = format!("{}\n{}", row.key, row.holder());
        text.to_lowercase().contains(&filter)
    };
    let rows = watched.locks.values().map(|lock| lock.row.clone());
    let mut rows: Vec<LockRow> = rows.filter(matches).collect();
    sort(&mut rows, view.sort);
    let cells = rows.iter().map(|row| {
        let first = watched
            .locks
            .get(&row.place())
            .map(|WatchedLock { first, .. }| *first);
        let mut cells = columns(row);
        // Else at least for as long as it is seen.
        if row.since.is_none() {
            let seen = now.saturating_duration_since(first.unwrap_or(now));
            cells[6] = format!(">{}", whole_seconds(seen));
        }
        cells
    });
    let cells = cells.collect();
    (rows, cells)
}

/// Returns a header and a line per row that fit into a width.
fn layout(rows: &[[String; 7]], width: usize) -> Vec<String> {
    let mut widths = HEADER.map(|(name, _)| name.width());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut visible: Vec<usize> = (0..HEADER.len()).collect();
    let needed = |visible: &[usize], width_of: &dyn Fn(usize) -> usize| {
        visible
            .iter()
            .map(|column| width_of(*column))
            .sum::<usize>()
            + GAP * (visible.len().max(1) - 1)
    };
    let least = |column: usize| match FLEXIBLE.contains(&column) {
        true => widths[column].min(MIN_FLEXIBLE),
        false => widths[column],
    };
    while needed(&visible, &least) > width && visible.len() > 2 {
        let first_to_go = visible
            .iter()
            .copied()
            .max_by_key(|column| HEADER[*column].1);
        visible.retain(|column| Some(*column) != first_to_go);
    }
    // The wider of the flexible columns gives up one place after the other.
    while needed(&visible, &|column| widths[column]) > width {
        let widest = FLEXIBLE
            .into_iter()
            .filter(|column| visible.contains(column));
        match widest.max_by_key(|column| widths[*column]) {
            Some(column) if widths[column] > MIN_FLEXIBLE.min(width) => widths[column] -= 1,
            _ => break,
        }
    }
    let text = |cells: &[String]| {
        let cells = visible.iter().map(|column| {
            let cell = cut(&cells[*column], widths[*column]);
            padded(&cell, widths[*column])
        });
        let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
        line.trim_end().to_owned()
    };
    let header = HEADER.map(|(name, _)| name.to_owned());
    let rows = rows.iter().map(|row| text(row));
    std::iter::once(text(&header)).chain(rows).collect()
}

fn footer(view: &View, rows: usize, page: usize) -> String {
    if view.is_typing {
        return format!("/{}▏ Enter keeps it, Esc drops it", view.filter);
    }
    let order = match view.sort {
        SortBy::Name => "name",
        SortBy::Holder => "holder",
        SortBy::End => "end",
    };
    let mut text = String::new();
    if rows > page {
        let last = (view.top + page).min(rows);
        text += &format!("{}-{last} of {rows}  ", view.top + 1);
    }
    if !view.filter.is_empty() {
        text += &format!("/{}  ", view.filter);
    }
    text + &format!("by {order}  q quit  n h e sort  / filter")
}

/// Returns a text that is at most this wide.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > width {
            break;
        }
        cut.push(c);
    }
    if width > 0 {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::watch::changes::tests::{row, seen};

    fn watched(start: Instant) -> Watched {
        let mut watched = Watched::default();
        let mut esc = row("b\x1b[2J", "web-8/2", 1);
        esc.remaining = Some(Duration::from_secs(3));
        let rows = vec![row("a", "web-7/1", 3), esc];
        watched.update(seen(rows, &["n:3"]), start);
        watched.update(Err("no quorum".to_owned()), start);
        watched
    }

    fn texts(view: &View, size: (usize, usize)) -> Vec<String> {
        let start = Instant::now();
        let now = start + Duration::from_millis(61_900);
        let frame = frame("title", &watched(start), view, now, size);
        assert!(frame.lines.len() <= size.1);
        assert!(
            frame.lines.iter().all(|line| line.text.width() <= size.0),
            "{frame:?}"
        );
        let squeeze = |line: &Line| line.text.split_whitespace().collect::<Vec<_>>().join(" ");
        frame.lines.iter().map(squeeze).collect()
    }

    #[test]
    fn frame_has_title_troubles_table_and_keys() {
        let lines = texts(&View::new(SortBy::Name), (100, 24));
        let wanted = [
            "title",
            "Holders are unknown, the table is older: no quorum",
            "n:3 is left out: down",
            "KEY KIND HOLDER NODES ENDS IN WAIT HELD FOR",
            "a lock web-7/1 3/3 9s - >1m 1s",
            r"b\u{1b}[2J lock web-8/2 1/3 (no quorum) 3s - >1m 1s",
            "by name q quit n h e sort / filter",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn frame_of_forty_columns_has_key_holder_and_end() {
        let lines = texts(&View::new(SortBy::End), (40, 24));
        assert_eq!(lines[3], "KEY KIND HOLDER ENDS IN WAIT");
        assert_eq!(lines[4], r"b\u{1b}[2J lock web-8/2 3s -");
        let lines = texts(&View::new(SortBy::End), (12, 24));
        assert_eq!(lines[3], "KEY E…");
    }

    #[test]
    fn rows_beyond_the_screen_are_scrolled_and_counted() {
        let mut view = View::new(SortBy::Name);
        view.top = 1;
        let lines = texts(&view, (100, 6));
        assert!(lines[4].starts_with('b'), "{lines:?}");
        assert!(lines[5].starts_with("2-2 of 2"), "{lines:?}");
        view.filter = "WEB-8".to_owned();
        view.top = 0;
        let lines = texts(&view, (100, 24));
        assert_eq!(lines.len(), 6);
        assert!(
            lines[4].starts_with('b') && lines[5].starts_with("/WEB-8"),
            "{lines:?}"
        );
        texts(&view, (1, 1));
        texts(&view, (0, 0));
    }
}
