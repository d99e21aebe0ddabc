//! State of a lock as the nodes report it.

use super::output::shown;
use redguard::{Holder, RedisLocker};
use serde_json::{Value, json};
use std::time::Duration;

/// The owner of a lock, or of a minority of its grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) key: String,
    pub(crate) owner: Option<String>,
    /// `None` without an owner or an expiry.
    pub(crate) remaining: Option<Duration>,
    /// Number of nodes that store the owner's token; 0 without an owner.
    pub(crate) nodes: usize,
    pub(crate) needed: usize,
    pub(crate) total: usize,
}

impl Lock {
    /// Asks the nodes. Blocks for at most `node_timeout`.
    pub(crate) fn read(locker: &RedisLocker, key: &str) -> Result<Lock, redguard::Error> {
        let total = locker.nodes().health().nodes.len();
        Ok(Lock::told(key, locker.holder(key)?, total))
    }

    pub(crate) fn told(key: &str, holder: Option<Holder>, total: usize) -> Lock {
        Lock {
            key: key.to_owned(),
            needed: total / 2 + 1,
            total,
            nodes: holder.as_ref().map_or(0, |holder| holder.nodes),
            remaining: holder.as_ref().and_then(|holder| holder.remaining),
            owner: holder.and_then(|holder| match holder.foreign {
                true => Some("a value of another type".to_owned()),
                false => holder.owner_label,
            }),
        }
    }

    /// Returns whether a quorum stores one owner. If not, a minority may still do.
    pub(crate) fn is_held(&self) -> bool {
        self.nodes >= self.needed
    }

    pub(crate) fn is_free(&self) -> bool {
        self.nodes == 0
    }

    pub(crate) fn holder(&self) -> String {
        label(self.owner.as_deref())
    }

    /// Returns the state that follows the name in a line.
    pub(crate) fn describe(&self) -> String {
        if self.is_free() {
            return "free".to_owned();
        }
        let (who, nodes, total) = (self.holder(), self.nodes, self.total);
        let ends = match self.remaining {
            Some(_) => format!("ends in {} unless renewed", self.ends_in()),
            None => "without an end".to_owned(),
        };
        if self.is_held() {
            format!("held by {who} on {nodes} of {total} nodes, {ends}")
        } else {
            let needed = self.needed;
            format!(
                "not held: {nodes} of {total} nodes has it for {who}, {needed} are needed, {ends}"
            )
        }
    }

    pub(crate) fn ends_in(&self) -> String {
        match self.remaining {
            _ if self.is_free() => "-".to_owned(),
            Some(remaining) => in_seconds(remaining),
            None => "never".to_owned(),
        }
    }

    pub(crate) fn object(&self) -> Value {
        json!({
            "key": self.key,
            "held": self.is_held(),
            "owner": self.owner,
            "remaining_ms": self.remaining.map(millis),
            "nodes": self.nodes,
            "needed": self.needed,
            "total": self.total,
        })
    }
}

pub(crate) fn label(owner: Option<&str>) -> String {
    owner.map_or_else(|| "(no label)".to_owned(), shown)
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Formats whole seconds only, which suffice for people.
pub(crate) fn in_seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}
