//! One holder of a lock, for people and for programs.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::duration::{millis, whole_seconds};
use crate::locks::LockKind;
use crate::output::shown;

/// The holder of a lock, or of a minority of its grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockRow {
    pub(crate) key: String,
    pub(crate) kind: LockKind,
    /// The SHA-1 of the token. Never shown.
    pub(crate) digest: String,
    pub(crate) owner: Option<String>,
    /// `None` without an end.
    pub(crate) remaining: Option<Duration>,
    /// The number of nodes that store the token.
    pub(crate) nodes: usize,
    pub(crate) needed: usize,
    pub(crate) total: usize,
    /// The permit, and the number of permits of its semaphore.
    pub(crate) permit: Option<(u16, u16)>,
    /// When the lock was acquired, by the clock of its holder.
    pub(crate) since: Option<SystemTime>,
    pub(crate) waiting: Waiting,
}

/// The waiting processes and writers of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The processes that wait for a release; `None` if no node tells.
    pub(crate) processes: Option<usize>,
    /// The owner labels of the waiting writers that have one.
    pub(crate) writers: Vec<String>,
}

impl LockRow {
    /// Returns whether a quorum stores the token.
    pub(crate) fn is_held(&self) -> bool {
        self.nodes >= self.needed
    }

    pub(crate) fn permit_number(&self) -> Option<u16> {
        self.permit.map(|(number, _)| number)
    }

    /// Returns what identifies the place that the holder has, for comparisons of two lists.
    pub(crate) fn place(&self) -> (String, LockKind, Option<u16>, String) {
        let digest = match self.kind {
            LockKind::Read => self.digest.clone(),
            _ => String::new(),
        };
        (self.key.clone(), self.kind, self.permit_number(), digest)
    }

    pub(crate) fn holder(&self) -> String {
        label(self.owner.as_deref())
    }

    /// Returns the name, with the kind where it is not the exclusive lock.
    pub(crate) fn title(&self) -> String {
        let key = shown(&self.key);
        match (self.kind, self.permit) {
            (LockKind::Lock, _) => key,
            (_, Some((number, total))) => format!("{key} (permit {number} of {total})"),
            (kind, None) => format!("{key} ({})", kind.name()),
        }
    }

    /// Returns the state that follows the title in a line.
    pub(crate) fn describe(&self) -> String {
        let (who, nodes, total, needed) = (self.holder(), self.nodes, self.total, self.needed);
        let ends = match self.remaining {
            Some(_) => format!("ends in {} unless renewed", self.ends_in()),
            None => "without an end".to_owned(),
        };
        let waiting = self.waiting_text();
        if self.is_held() {
            let since = match self.held_for() {
                Some(time) => format!(" for {}", whole_seconds(time)),
                None => String::new(),
            };
            format!("held by {who}{since} on {nodes} of {total} nodes, {ends}{waiting}")
        } else {
            format!(
                "not held: {nodes} of {total} nodes has it for {who}, {needed} are needed, {ends}"
            )
        }
    }

    /// Returns for how long the lock is held; `None` if its token does not tell.
    pub(crate) fn held_for(&self) -> Option<Duration> {
        // The clock of the holder may be ahead of ours.
        let elapsed = |since: SystemTime| since.elapsed().unwrap_or_default();
        self.since.map(elapsed)
    }

    fn waiting_text(&self) -> String {
        let mut text = match self.waiting.processes {
            None | Some(0) => String::new(),
            Some(1) => "; 1 process waits".to_owned(),
            Some(count) => format!("; {count} processes wait"),
        };
        if !self.waiting.writers.is_empty() {
            let writers: Vec<_> = self
                .waiting
                .writers
                .iter()
                .map(|owner| shown(owner))
                .collect();
            text += &format!("; waiting to write: {}", writers.join(", "));
        }
        text
    }

    pub(crate) fn ends_in(&self) -> String {
        self.remaining
            .map_or_else(|| "never".to_owned(), whole_seconds)
    }

    pub(crate) fn object(&self) -> Value {
        let mut object = json!({
            "key": self.key,
            "kind": self.kind.name(),
            "held": self.is_held(),
            "owner": self.owner,
            "remaining_ms": self.remaining.map(millis),
            "since": self.since.map(rfc3339),
            "nodes": self.nodes,
            "needed": self.needed,
            "total": self.total,
            "waiting": self.waiting.processes,
        });
        if let Some((number, total)) = self.permit {
            object["permit"] = number.into();
            object["permits"] = total.into();
        }
        if !self.waiting.writers.is_empty() {
            object["waiting_writers"] = json!(self.waiting.writers);
        }
        object
    }
}

/// Returns the JSON object of a lock without a holder.
pub(crate) fn free_object(key: &str, needed: usize, total: usize) -> Value {
    json!({
        "key": key, "kind": null, "held": false, "owner": null, "remaining_ms": null, "since": null,
        "nodes": 0, "needed": needed, "total": total, "waiting": null,
    })
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(crate) fn label(owner: Option<&str>) -> String {
    owner.map_or_else(|| "(no label)".to_owned(), shown)
}
