//! Output: lines for people, or with `--json` one object per line.

use super::exit_error::{Kind, Refusal};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Writes results to standard output and all else to standard error.
pub(crate) struct Voice<'a> {
    pub(crate) json: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Voice<'a> {
    pub(crate) fn new(json: bool, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Voice<'a> {
        Voice { json, out, err }
    }

    /// Writes one result.
    pub(crate) fn tell(&mut self, text: &str, object: &Value) -> io::Result<()> {
        if self.json {
            writeln!(self.out, "{object}")?;
        } else {
            writeln!(self.out, "{text}")?;
        }
        self.out.flush()
    }

    /// Writes a text unchanged.
    pub(crate) fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    pub(crate) fn help(&mut self, help: &clap::Error) -> io::Result<()> {
        self.write(&help.render().to_string())
    }

    /// Writes a message to standard error, which may be closed.
    pub(crate) fn warn(&mut self, text: &str, object: &Value) {
        _ = if self.json {
            writeln!(self.err, "{object}")
        } else {
            writeln!(self.err, "exclusive: {text}")
        };
    }

    /// Reports a node that is not asked or does not reply.
    pub(crate) fn warn_of_node(&mut self, node: &str, cause: &str) {
        let object = json!({ "warning": cause, "node": node });
        self.warn(&format!("{node} is left out: {cause}"), &object);
    }

    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        if refusal.kind == Kind::Pipe {
            return;
        }
        let object = json!({
            "error": refusal.line,
            "kind": refusal.name(),
            "status": refusal.status(),
        });
        self.warn(&refusal.line, &object);
    }
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
