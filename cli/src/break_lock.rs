//! `break`: removes a lock from its holders after a confirmation.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use crate::args::BreakOptions;
use crate::config::Settings;
use crate::failure::{Failure, Kind, NO, Result};
use crate::locks::force_release::force_release;
use crate::locks::keys;
use crate::locks::row::LockRow;
use crate::locks::survey::Survey;
use crate::notes::Notes;
use crate::output::{Output, shown};
use crate::status::warn_of_absent;

/// Breaks the lock if the operator confirms. Returns the exit status.
pub(crate) fn break_lock(
    options: &BreakOptions,
    settings: &Settings,
    output: Output,
    notes: &Notes,
) -> Result<u8> {
    if !options.yes && !has_terminal() {
        let line = "break needs a terminal for its confirmation, or --yes";
        return Err(Failure::usage(line));
    }
    let key = &options.key;
    keys::validate(key)?;
    let mut survey = Survey::new(settings, "")?;
    let mut seen = survey.read(std::slice::from_ref(key))?;
    warn_of_absent(&seen.absent, notes);
    seen.rows.retain(|row| is_selected(row, options));
    let (nodes, prefix) = (survey.nodes_mut(), &settings.prefix);
    if seen.rows.is_empty() {
        force_release(nodes, prefix, key, &[])?;
        let object = json!({ "key": key, "broken": false, "owner": null, "nodes": 0 });
        output.tell(&format!("{}: there is no such lock", shown(key)), &object)?;
        return Ok(NO);
    }
    if !options.yes && !is_confirmed(&seen.rows)? {
        let line = format!("lock {key:?}: not confirmed, nothing was done");
        return Err(Failure::new(Kind::NotConfirmed, line));
    }
    let digests: Vec<&str> = seen.rows.iter().map(|row| row.digest.as_str()).collect();
    if !force_release(nodes, prefix, key, &digests)? {
        let line = format!("lock {key:?}: released or passed on meanwhile, nothing was done");
        return Err(Failure::new(Kind::NotConfirmed, line));
    }
    for row in &seen.rows {
        let (who, nodes, total) = (row.holder(), row.nodes, row.total);
        let text = format!(
            "{}: broken; {who} had it on {nodes} of {total} nodes, and may continue until it checks",
            row.title()
        );
        output.tell(&text, &broken_object(row))?;
    }
    Ok(0)
}

fn is_selected(row: &LockRow, options: &BreakOptions) -> bool {
    options.kind.is_none_or(|kind| kind == row.kind)
        && (options.permit.is_none() || options.permit == row.permit_number())
        && (options.if_owner.is_none() || options.if_owner == row.owner)
}

fn broken_object(row: &LockRow) -> Value {
    let mut object = json!({
        "key": row.key, "kind": row.kind.name(), "broken": true, "owner": row.owner, "nodes": row.nodes,
    });
    if let Some(number) = row.permit_number() {
        object["permit"] = number.into();
    }
    object
}

fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Shows the holders and asks at the terminal.
fn is_confirmed(rows: &[LockRow]) -> io::Result<bool> {
    let mut terminal = io::stderr();
    for row in rows {
        writeln!(terminal, "{}: {}", row.title(), row.describe())?;
    }
    write!(terminal, "Break it? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    let answer = answer.trim();
    Ok(answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"))
}
