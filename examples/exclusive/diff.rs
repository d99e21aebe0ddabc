//! Changes between two lists of locks.

use super::lock_row::{Lock, in_seconds, label, millis};
use super::output::shown;
use super::scan::Absent;
use super::status::Seen;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// State after the latest list.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) locks: BTreeMap<String, Watch>,
    pub(crate) absent: BTreeMap<String, String>,
    /// Cause of a failed list; the locks above are then older.
    pub(crate) trouble: Option<String>,
}

/// A lock with its latest owners.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) lock: Lock,
    /// When these owners were first seen. The nodes do not store since when they hold it.
    pub(crate) first: Instant,
}

/// A change between two lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Held(Lock),
    /// An owner has a minority of the nodes.
    Partial(Lock),
    /// With the former owner, and how long it was seen.
    Passed(Lock, Option<String>, Duration),
    /// With the former owner, and how long it was seen.
    Freed(Lock, Duration),
    NodeDown(String, String),
    NodeUp(String),
    /// Holders cannot be read.
    Unknown(String),
    Known,
}

impl Watched {
    /// Applies a list, or the cause of its failure, and returns the changes.
    pub(crate) fn update(&mut self, seen: Result<Seen, String>, now: Instant) -> Vec<Change> {
        let Seen { locks, absent } = match seen {
            Ok(seen) => seen,
            Err(cause) if self.trouble.is_some() => {
                self.trouble = Some(cause);
                return Vec::new();
            }
            Err(cause) => {
                self.trouble = Some(cause.clone());
                return vec![Change::Unknown(cause)];
            }
        };
        let mut changes = Vec::new();
        if self.trouble.take().is_some() {
            changes.push(Change::Known);
        }
        self.update_nodes(absent, &mut changes);
        let mut former = std::mem::take(&mut self.locks);
        for lock in locks {
            let watch = match former.remove(&lock.key) {
                Some(before) if before.lock.owner == lock.owner => {
                    if before.lock.is_held() != lock.is_held() {
                        changes.push(Change::of(&lock));
                    }
                    Watch {
                        lock,
                        first: before.first,
                    }
                }
                before => {
                    changes.push(match before {
                        Some(Watch { lock: was, first }) => {
                            Change::Passed(lock.clone(), was.owner, now - first)
                        }
                        None => Change::of(&lock),
                    });
                    Watch { lock, first: now }
                }
            };
            self.locks.insert(watch.lock.key.clone(), watch);
        }
        let gone = former.into_values();
        changes.extend(gone.map(|Watch { lock, first }| Change::Freed(lock, now - first)));
        changes
    }

    fn update_nodes(&mut self, absent: Vec<Absent>, changes: &mut Vec<Change>) {
        let mut former = std::mem::take(&mut self.absent);
        for Absent { node, cause } in absent {
            if former.remove(&node).is_none() {
                changes.push(Change::NodeDown(node.clone(), cause.clone()));
            }
            self.absent.insert(node, cause);
        }
        changes.extend(former.into_keys().map(Change::NodeUp));
    }
}

impl Change {
    /// Returns the change for a lock that is new or in another state.
    fn of(lock: &Lock) -> Change {
        if lock.is_held() {
            Change::Held(lock.clone())
        } else {
            Change::Partial(lock.clone())
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Change::Held(lock) | Change::Partial(lock) => {
                format!("{}: {}", shown(&lock.key), lock.describe())
            }
            Change::Passed(lock, from, seen) => format!(
                "{}: {}, after {} was seen for {}",
                shown(&lock.key),
                lock.describe(),
                label(from.as_deref()),
                in_seconds(*seen)
            ),
            Change::Freed(lock, seen) => format!(
                "{}: free, after {} was seen for {}",
                shown(&lock.key),
                lock.holder(),
                in_seconds(*seen)
            ),
            Change::NodeDown(node, cause) => format!("{node} is left out: {cause}"),
            Change::NodeUp(node) => format!("{node} is back"),
            Change::Unknown(cause) => format!("holders are unknown: {cause}"),
            Change::Known => "holders are known again".to_owned(),
        }
    }

    pub(crate) fn object(&self, time: &str) -> Value {
        let mut object = match self {
            Change::Held(lock) | Change::Partial(lock) | Change::Passed(lock, ..) => lock.object(),
            Change::Freed(lock, _) => Lock {
                nodes: 0,
                remaining: None,
                ..lock.clone()
            }
            .object(),
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
mod tests {
    use super::*;

    fn lock(key: &str, owner: &str, nodes: usize) -> Lock {
        Lock {
            key: key.to_owned(),
            owner: Some(owner.to_owned()),
            remaining: Some(Duration::from_secs(9)),
            nodes,
            needed: 2,
            total: 3,
        }
    }

    fn seen(locks: Vec<Lock>, absent: &[&str]) -> Result<Seen, String> {
        let absent = absent.iter().map(|node| Absent {
            node: (*node).to_owned(),
            cause: "down".to_owned(),
        });
        let absent = absent.collect();
        Ok(Seen { locks, absent })
    }

    /// Applies lists at intervals of 10 s.
    fn changes(lists: Vec<Result<Seen, String>>) -> Vec<Vec<Change>> {
        #[expect(clippy::disallowed_methods, reason = "the test accepts any moment")]
        let start = Instant::now();
        let mut watched = Watched::default();
        let times = (0..).map(|list| start + Duration::from_secs(10 * list));
        let lists = lists.into_iter().zip(times);
        lists.map(|(list, now)| watched.update(list, now)).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let (a, b) = (lock("k", "a", 3), lock("k", "b", 3));
        let (part, less) = (lock("k", "a", 1), lock("k", "a", 2));
        let seconds = Duration::from_secs;
        let told = changes(vec![
            seen(vec![], &[]),
            seen(vec![part.clone()], &[]),
            seen(vec![a.clone()], &[]),
            seen(vec![less], &[]), // still held by a quorum
            seen(vec![b.clone()], &[]),
            seen(vec![b.clone(), lock("l", "a", 3)], &[]),
            seen(vec![lock("l", "a", 3)], &[]),
        ]);
        assert_eq!(
            told,
            [
                vec![],
                vec![Change::Partial(part)],
                vec![Change::Held(a)],
                vec![],
                vec![Change::Passed(b.clone(), Some("a".to_owned()), seconds(30))],
                vec![Change::Held(lock("l", "a", 3))],
                vec![Change::Freed(b, seconds(20))],
            ]
        );
    }

    #[test]
    fn outage_keeps_the_time_of_owners() {
        let a = lock("k", "a", 3);
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
        let lock = lock("k", "a", 3);
        let passed = Change::Passed(lock.clone(), None, Duration::from_millis(1500));
        assert_eq!(
            passed.object("now"),
            json!({
                "event": "passed", "time": "now", "key": "k", "held": true, "owner": "a", "remaining_ms": 9000,
                "nodes": 3, "needed": 2, "total": 3, "from": null, "seen_ms": 1500,
            })
        );
        assert_eq!(
            Change::Freed(lock, Duration::ZERO).object("now"),
            json!({
                "event": "freed", "time": "now", "key": "k", "held": false, "owner": "a", "remaining_ms": null,
                "nodes": 0, "needed": 2, "total": 3, "seen_ms": 0,
            })
        );
        let down = Change::NodeDown("n".to_owned(), "c".to_owned()).object("now");
        assert_eq!(
            down,
            json!({ "event": "node_down", "time": "now", "node": "n", "cause": "c" })
        );
    }
}
