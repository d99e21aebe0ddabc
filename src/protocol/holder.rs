//! Merges the nodes' reports on the holder of a lock, for operators. No decision on a lock depends
//! on it; a report never contains the token (S3).

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::error::duration_text;
use crate::time::clock;

/// The holder of an exclusive lock, as [`RedisLocker::holder`](crate::RedisLocker::holder) returns
/// it.
///
/// This is **a report, not a lock**: it is out of date when it is returned. Show it to a person,
/// and decide nothing by it. A program that needs the lock acquires it.
///
/// ```
/// use redguard::Holder;
///
/// fn line(holder: &Holder) -> String {
///     let owner = holder.owner_label.as_deref().unwrap_or("an unnamed process");
///     match (holder.has_quorum(), holder.remaining) {
///         (true, Some(rest)) => format!("{owner} holds it for {rest:.0?}"),
///         (true, None) => format!("{owner} holds it without an end"),
///         (false, _) => format!("{owner} has {} of {} nodes", holder.nodes, holder.quorum),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The holder's label: `HOST/PID`, or that of
    /// [`Config::owner_label`](crate::Config::owner_label) or
    /// [`LockOptions::owner_label`](crate::LockOptions::owner_label). `None` with
    /// [`no_owner_label`](crate::Config::no_owner_label). Of a foreign client's value, the part
    /// before its last `:`.
    pub owner_label: Option<String>,
    /// The time until fewer than a quorum of nodes hold the lock, if it is not extended. If fewer
    /// than a quorum hold it now, the time until the last of them is free. `None` if a key without
    /// an expiry prevents that.
    pub remaining: Option<Duration>,
    /// When the holder acquired the lock, by the clock of its computer. Kept through renewals.
    /// `None` for a lock that passed from thread to thread of a process without being free, and for
    /// values of other clients and earlier versions.
    pub since: Option<SystemTime>,
    /// The number of nodes that store the holder's token.
    pub nodes: usize,
    /// The quorum of the configured nodes. With fewer nodes the lock is not held: its acquire or
    /// release is in progress, or nodes have lost their data.
    pub quorum: usize,
    /// Whether a value of another type is stored under the lock's key. It blocks the lock while it
    /// exists, and [`force_release`](crate::RedisLocker::force_release) does not delete it.
    pub foreign: bool,
}

impl Holder {
    /// Returns whether a quorum of nodes stores the token, so that the lock is held.
    pub fn has_quorum(&self) -> bool {
        self.nodes >= self.quorum
    }
}

/// As "web-7/1234 on 3 nodes, free in 29 s unless renewed".
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match (&self.owner_label, self.foreign) {
            (Some(label), _) => label,
            (None, true) => "a value of another type",
            (None, false) => "an unnamed holder",
        };
        let plural = if self.nodes == 1 { "" } else { "s" };
        write!(f, "{owner} on {} node{plural}", self.nodes)?;
        if !self.has_quorum() {
            write!(f, " (no quorum of {})", self.quorum)?;
        }
        match self.remaining {
            Some(left) => {
                let left = duration_text::format_wait(left);
                write!(f, ", free in {left} unless renewed")
            }
            None => f.write_str(", without an expiry"),
        }
    }
}

/// One node's report on a lock's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeHolder {
    /// Identifies the token without revealing it, because a token can release the lock. Empty for a
    /// value of another type.
    pub(crate) digest: String,
    pub(crate) owner: Option<Box<str>>,
    pub(crate) remaining: Option<Duration>,
    /// The time of the acquire since 1970.
    pub(crate) since: Option<Duration>,
}

/// Merges the nodes' reports: the holder is the token that most nodes store.
pub(crate) fn merge_holders(reports: &[NodeHolder], quorum: usize) -> Option<Holder> {
    let ends_of = |holder: &NodeHolder| {
        let same = reports
            .iter()
            .filter(|report| report.digest == holder.digest);
        same.map(|report| report.remaining).collect::<Vec<_>>()
    };
    let holder = reports.iter().max_by_key(|report| ends_of(report).len())?;
    let mut ends = ends_of(holder);
    // The latest end comes first; a key without an expiry ends last.
    ends.sort_by_key(|end| std::cmp::Reverse(end.unwrap_or(Duration::MAX)));
    let decisive = if ends.len() < quorum { 0 } else { quorum - 1 };
    Some(Holder {
        owner_label: holder.owner.as_deref().map(str::to_owned),
        since: holder.since.and_then(clock::system_time),
        remaining: ends[decisive],
        nodes: ends.len(),
        quorum,
        foreign: holder.digest.is_empty(),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn report(digest: &str, seconds: Option<u64>) -> NodeHolder {
        NodeHolder {
            digest: digest.to_owned(),
            owner: Some(format!("of {digest}").into()),
            remaining: seconds.map(Duration::from_secs),
            since: None,
        }
    }

    #[test]
    fn holder_is_the_token_on_most_nodes() {
        let (a, b) = (|s| report("a", Some(s)), |s| report("b", Some(s)));
        for (reports, owner, remaining, nodes) in [
            (vec![a(3), a(5), a(4)], "of a", Some(4), 3),
            (vec![a(3), b(5), a(4)], "of a", Some(3), 2),
            (vec![a(3)], "of a", Some(3), 1),
            (vec![b(2), a(3), b(9)], "of b", Some(2), 2),
            (vec![report("a", None), a(4), a(2)], "of a", Some(4), 3),
            (vec![report("a", None), report("a", None)], "of a", None, 2),
        ] {
            let found = merge_holders(&reports, 2).unwrap();
            assert_eq!(found.owner_label.as_deref(), Some(owner));
            assert_eq!(found.remaining, remaining.map(Duration::from_secs));
            assert_eq!((found.nodes, found.has_quorum()), (nodes, nodes >= 2));
        }
        for (reports, expected) in [
            (
                vec![a(30), a(30), a(30)],
                "of a on 3 nodes, free in 30 s unless renewed",
            ),
            (
                vec![a(3)],
                "of a on 1 node (no quorum of 2), free in 3.0 s unless renewed",
            ),
            (
                vec![report("a", None), report("a", None)],
                "of a on 2 nodes, without an expiry",
            ),
        ] {
            assert_eq!(merge_holders(&reports, 2).unwrap().to_string(), expected);
        }
        assert_eq!(merge_holders(&[], 2), None);
        for (reports, foreign) in [
            (vec![a(3), a(3), report("", None)], false),
            (vec![report("", None)], true),
        ] {
            assert_eq!(
                merge_holders(&reports, 2).map(|found| found.foreign),
                Some(foreign)
            );
        }
        let nameless = NodeHolder {
            owner: None,
            ..report("a", None)
        };
        assert_eq!(merge_holders(&[nameless], 1).unwrap().owner_label, None);
    }
}
