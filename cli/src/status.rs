//! `status` and `list`: the holders of one lock, and of all locks.

use crate::args::Selection;
use crate::config::Settings;
use crate::duration::whole_seconds;
use crate::failure::{NO, Result};
use crate::locks::inspect::MAX_NAMES;
use crate::locks::keys;
use crate::locks::row::{LockRow, free_object};
use crate::locks::survey::{Seen, Survey, sort};
use crate::nodes::fan_out::Absent;
use crate::notes::Notes;
use crate::output::{Output, Paint, shown, table};

/// Shows the holders of one lock.
pub(crate) fn status(key: &str, settings: &Settings, output: Output, notes: &Notes) -> Result<u8> {
    keys::validate(key)?;
    let mut survey = Survey::new(settings, "")?;
    let Seen { rows, absent } = survey.read(&[key.to_owned()])?;
    warn_of_absent(&absent, notes);
    if rows.is_empty() {
        let object = free_object(key, settings.quorum(), survey.total());
        output.tell(&format!("{}: free", shown(key)), &object)?;
    }
    for row in &rows {
        output.tell(
            &format!("{}: {}", row.title(), row.describe()),
            &row.object(),
        )?;
    }
    let is_held = rows.iter().any(LockRow::is_held);
    Ok(if is_held { 0 } else { NO })
}

/// Lists the holders of all locks that a pattern selects.
pub(crate) fn list(
    selection: &Selection,
    settings: &Settings,
    output: Output,
    notes: &Notes,
) -> Result<u8> {
    let mut survey = Survey::new(settings, &selection.pattern)?;
    let found = survey.find(&|| true)?;
    let names: Vec<String> = found.names.into_iter().collect();
    let Seen {
        mut rows,
        mut absent,
    } = survey.read(&names)?;
    absent.extend(found.absent);
    absent.sort_by(|a, b| a.node.cmp(&b.node));
    absent.dedup_by(|a, b| a.node == b.node);
    warn_of_absent(&absent, notes);
    if names.len() > MAX_NAMES {
        let text = format!("{} names, of which {MAX_NAMES} are listed", names.len());
        notes.warn(&text, &serde_json::json!({ "warning": text }));
    }
    rows.retain(is_lock);
    sort(&mut rows, selection.sort);
    if output.json {
        for row in &rows {
            output.tell("", &row.object())?;
        }
    } else {
        let cells: Vec<_> = rows.iter().map(columns).collect();
        let lines = table(COLUMNS, &cells);
        let paints = rows.iter().map(|row| match row.is_held() {
            true => Paint::Plain,
            false => Paint::Yellow,
        });
        let paints = std::iter::once(Paint::Bold).chain(paints);
        let painted = lines.iter().zip(paints).map(|(line, paint)| paint.on(line));
        output.write(&painted.collect::<String>())?;
    }
    Ok(0)
}

/// Reports the nodes that did not contribute to the result.
pub(crate) fn warn_of_absent(absent: &[Absent], notes: &Notes) {
    for Absent { node, cause, .. } in absent {
        notes.warn_of_node(node, cause);
    }
}

/// Returns whether a row is a lock: a value of another type is only shown where it is asked for.
pub(crate) fn is_lock(row: &LockRow) -> bool {
    !row.digest.is_empty()
}

/// The columns of a lock.
pub(crate) const COLUMNS: [&str; 7] = [
    "KEY", "KIND", "HOLDER", "NODES", "ENDS IN", "WAIT", "HELD FOR",
];

/// Returns the cells of a lock.
pub(crate) fn columns(row: &LockRow) -> [String; 7] {
    let partial = if row.is_held() { "" } else { " (no quorum)" };
    let kind = match row.permit {
        Some((number, total)) => format!("permit {number} of {total}"),
        None => row.kind.name().to_owned(),
    };
    let waiting = match row.waiting.processes {
        None => "?".to_owned(),
        Some(0) => "-".to_owned(),
        Some(count) => count.to_string(),
    };
    [
        shown(&row.key),
        kind,
        row.holder(),
        format!("{}/{}{partial}", row.nodes, row.total),
        row.ends_in(),
        waiting,
        row.held_for().map_or_else(|| "?".to_owned(), whole_seconds),
    ]
}
