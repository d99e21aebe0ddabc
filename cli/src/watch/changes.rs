//! Changes between two lists of locks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::duration::{millis, whole_seconds};
use crate::locks::LockKind;
use crate::locks::row::{LockRow, label};
use crate::locks::survey::Seen;

/// The state after the latest list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    pub(crate) locks: BTreeMap<Place, WatchedLock>,
    pub(crate) absent: BTreeMap<String, String>,
    /// The cause of a failed list; the locks above are then older.
    pub(crate) trouble: Option<String>,
}

/// The place that a holder has: name, kind, permit, and among readers its token's digest.
type Place = (String, LockKind, Option<u16>, String);

/// A lock with its latest holder.
#[derive(Clone, Debug)]
pub(crate) struct WatchedLock {
    pub(crate) row: LockRow,
    /// When this holder was first seen.
    pub(crate) first: Instant,
}

/// A change between two lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Held(LockRow),
    /// A holder has a minority of the nodes.
    Partial(LockRow),
    /// With the former owner label, and how long its holder was seen.
    Passed(LockRow, Option<String>, Duration),
    /// With the former holder, and how long it was seen.
    Freed(LockRow, Duration),
    NodeDown(String, String),
    NodeUp(String),
    /// Holders cannot be read.
    Unknown(String),
    Known,
}

impl Watched {
    /// Applies a list, or the cause of its failure, and returns the changes.
    pub(crate) fn update(&mut self, seen: Result<Seen, String>, now: Instant) -> Vec<Change> {
        let seen = match seen {
            Ok(seen) => seen,
            Err(cause) => {
                let is_known = self.trouble.replace(cause.clone()).is_some();
                return if is_known {
                    Vec::new()
                } else {
                    vec![Change::Unknown(cause)]
                };
            }
        };
        let mut changes = Vec::new();
        if self.trouble.take().is_some() {
            changes.push(Change::Known);
        }
        self.update_nodes(&seen, &mut changes);
        let mut former = std::mem::take(&mut self.locks);
        for row in seen.rows {
            let before = former.remove(&row.place());
            let (change, first) = compare(before, &row, now);
            changes.extend(change);
            self.locks.insert(row.place(), WatchedLock { row, first });
        }
        let gone = former.into_values();
        changes.extend(gone.map(|WatchedLock { row, first }| Change::Freed(row, now - first)));
        changes
    }

    fn update_nodes(&mut self, seen: &Seen, changes: &mut Vec<Change>) {
        let mut former = std::mem::take(&mut self.absent);
        for absent in &seen.absent {
            let (node, cause) = (absent.node.clone(), absent.cause.clone());
            if former.remove(&node).is_none() {
                changes.push(Change::NodeDown(node.clone(), cause.clone()));
            }
            self.absent.insert(node, cause);
        }
        changes.extend(former.into_keys().map(Change::NodeUp));
    }
}

/// Returns the change of one place, and since when its holder is seen.
fn compare(before: Option<WatchedLock>, row: &LockRow, now: Instant) -> (Option<Change>, Instant) {
    match before {
        Some(before) if before.row.digest == row.digest => {
            let is_other = before.row.is_held() != row.is_held();
            (is_other.then(|| Change::of(row)), before.first)
        }
        Some(before) => {
            let seen_for = now - before.first;
            (
                Some(Change::Passed(row.clone(), before.row.owner, seen_for)),
                now,
            )
        }
        None => (Some(Change::of(row)), now),
    }
}

impl Change {
    /// Returns the change for a lock that is new or in another state.
    fn of(row: &LockRow) -> Change {
        if row.is_held() {
            Change::Held(row.clone())
        } else {
            Change::Partial(row.clone())
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Change::Held(row) | Change::Partial(row) => {
                format!("{}: {}", row.title(), row.describe())
            }
            Change::Passed(row, from, seen) => format!(
                "{}: {}, after {} was seen for {}",
                row.title(),
                row.describe(),
                label(from.as_deref()),
                whole_seconds(*seen)
            ),
            Change::Freed(row, seen) => format!(
                "{}: free, after {} was seen for {}",
                row.title(),
                row.holder(),
                whole_seconds(*seen)
            ),
            Change::NodeDown(node, cause) => format!("{node} is left out: {cause}"),
            Change::NodeUp(node) => format!("{node} is back"),
            Change::Unknown(cause) => format!("holders are unknown: {cause}"),
            Change::Known => "holders are known again".to_owned(),
        }
    }

    pub(crate) fn object(&self, time: &str) -> Value {
        let mut object = match self {
            Change::Held(row) | Change::Partial(row) | Change::Passed(row, ..) => row.object(),
            Change::Freed(row, _) => {
                let mut object = row.object();
                object["held"] = false.into();
                object["nodes"] = 0.into();
                object["remaining_ms"] = Value::Null;
                object
            }
            Change::NodeDown(node, cause) => json!({ "node": node, "cause": cause }),
            Change::NodeUp(node) => json!({ "node": node }),
            Change::Unknown(cause) => json!({ "cause": cause }),
            Change::Known => json!({}),
        };
        if let Change::Passed(_, from, _) = self {
            object["from"] = json!(from);
        }
        if let Change::Passed(.., seen) | Change::Freed(_, seen) = self {
            object["seen_ms"] = millis(*seen).into();
        }
        object["event"] = self.name().into();
        object["time"] = time.into();
        object
    }

    fn name(&self) -> &'static str {
        match self {
            Change::Held(_) => "held",
            Change::Partial(_) => "partial",
            Change::Passed(..) => "passed",
            Change::Freed(..) => "freed",
            Change::NodeDown(..) => "node_down",
            Change::NodeUp(_) => "node_up",
            Change::Unknown(_) => "unknown",
            Change::Known => "known",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::locks::row::Waiting;
    use crate::nodes::connection::Trouble;
    use crate::nodes::fan_out::Absent;

    pub(crate) fn row(key: &str, owner: &str, nodes: usize) -> LockRow {
        LockRow {
            key: key.to_owned(),
            kind: LockKind::Lock,
            digest: owner.to_owned(),
            owner: Some(owner.to_owned()),
            remaining: Some(Duration::from_secs(9)),
            nodes,
            needed: 2,
            total: 3,
            permit: None,
            since: None,
            waiting: Waiting {
                processes: Some(0),
                writers: Vec::new(),
            },
        }
    }

    pub(crate) fn seen(rows: Vec<LockRow>, absent: &[&str]) -> Result<Seen, String> {
        let absent = absent.iter().map(|node| Absent {
            node: (*node).to_owned(),
            cause: "down".to_owned(),
            trouble: Trouble::Refused,
        });
        let absent = absent.collect();
        Ok(Seen { rows, absent })
    }

    /// Applies lists at intervals of 10 s.
    fn changes(lists: Vec<Result<Seen, String>>) -> Vec<Vec<Change>> {
        let start = Instant::now();
        let mut watched = Watched::default();
        let times = (0..).map(|list| start + Duration::from_secs(10 * list));
        let lists = lists.into_iter().zip(times);
        lists.map(|(list, now)| watched.update(list, now)).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let (a, b) = (row("k", "a", 3), row("k", "b", 3));
        let (part, less) = (row("k", "a", 1), row("k", "a", 2));
        let seconds = Duration::from_secs;
        let told = changes(vec![
            seen(vec![], &[]),
            seen(vec![part.clone()], &[]),
            seen(vec![a.clone()], &[]),
            seen(vec![less], &[]), // still held by a quorum
            seen(vec![b.clone()], &[]),
            seen(vec![b.clone(), row("l", "a", 3)], &[]),
            seen(vec![row("l", "a", 3)], &[]),
        ]);
        assert_eq!(
            told,
            [
                vec![],
                vec![Change::Partial(part)],
                vec![Change::Held(a)],
                vec![],
                vec![Change::Passed(b.clone(), Some("a".to_owned()), seconds(30))],
                vec![Change::Held(row("l", "a", 3))],
                vec![Change::Freed(b, seconds(20))],
            ]
        );
    }

    #[test]
    fn outage_keeps_the_time_of_holders() {
        let a = row("k", "a", 3);
        let told = changes(vec![
            seen(vec![a.clone()], &["x"]),
            Err("no quorum".to_owned()),
            Err("still none".to_owned()),
            seen(vec![a.clone()], &["x", "y"]),
            seen(vec![], &["y"]),
        ]);
        let down = |node: &str| Change::NodeDown(node.to_owned(), "down".to_owned());
        assert_eq!(
            told,
            [
                vec![down("x"), Change::Held(a.clone())],
                vec![Change::Unknown("no quorum".to_owned())],
                vec![],
                vec![Change::Known, down("y")],
                vec![
                    Change::NodeUp("x".to_owned()),
                    Change::Freed(a, Duration::from_secs(40))
                ],
            ]
        );
    }

    #[test]
    fn objects_have_the_documented_fields() {
        let row = row("k", "a", 3);
        let passed = Change::Passed(row.clone(), None, Duration::from_millis(1500));
        assert_eq!(
            passed.object("now"),
            json!({
                "event": "passed", "time": "now", "key": "k", "kind": "lock", "held": true, "owner": "a",
                "remaining_ms": 9000, "since": null, "nodes": 3, "needed": 2, "total": 3, "waiting": 0, "from": null,
                "seen_ms": 1500,
            })
        );
        let freed = Change::Freed(row, Duration::ZERO).object("now");
        assert_eq!(
            (&freed["held"], &freed["nodes"]),
            (&json!(false), &json!(0))
        );
        let down = Change::NodeDown("n".to_owned(), "c".to_owned()).object("now");
        assert_eq!(
            down,
            json!({ "event": "node_down", "time": "now", "node": "n", "cause": "c" })
        );
    }
}
