//! Who holds a lock, as the nodes tell it: for operators.

use std::time::Duration;

/// Who holds an exclusive lock, as [`RedisLocker::holder`](crate::RedisLocker::holder) found it.
///
/// This is **a look, not a lock**: it is out of date when it is returned, and nothing may be concluded from it but what to
/// show to a human. Who wants the lock asks for it.
///
/// ```
/// use redguard::Holder;
///
/// fn line(holder: &Holder) -> String {
///     let owner = holder.owner_label.as_deref().unwrap_or("somebody");
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
    /// The label that its process has set with [`Config::owner_label`](crate::Config::owner_label), if any. A foreign client's value is
    /// shown up to its last `:`.
    pub owner_label: Option<String>,
    /// Until a quorum of nodes does not hold it any more, if it is not extended; for one that holds fewer nodes than that,
    /// until the last of them is free. `None` if that never comes to pass, since the key has no end.
    pub remaining: Option<Duration>,
    /// On how many nodes the lock has its token.
    pub nodes: usize,
    /// How many it needs, of the configured ones. With fewer the lock is not held: it is about to be, or was, or the rest of
    /// it has been lost.
    pub quorum: usize,
    /// Whether it is no lock, but a value of another type under the lock's key. It stands in the way for as long as it is there:
    /// [`force_release`](crate::RedisLocker::force_release) leaves it alone.
    pub foreign: bool,
}

impl Holder {
    /// Whether it has a quorum of nodes, so that the lock is held.
    pub fn has_quorum(&self) -> bool {
        self.nodes >= self.quorum
    }
}

/// What one node says of a lock's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeHolder {
    /// Tells tokens apart, without giving them away: who knows a token can release the lock. Empty for a value of another type.
    pub(crate) digest: String,
    pub(crate) owner: String,
    pub(crate) remaining: Option<Duration>,
}

/// Who holds the lock of whom the nodes say this: the one with the most nodes.
pub(crate) fn merge_holders(sights: &[NodeHolder], needed: usize) -> Option<Holder> {
    let ends_of = |wanted: &NodeHolder| {
        let same = sights.iter().filter(|s| s.digest == wanted.digest);
        same.map(|s| s.remaining).collect::<Vec<_>>()
    };
    let most = sights.iter().max_by_key(|sight| ends_of(sight).len())?;
    let mut ends = ends_of(most);
    // The last to end comes first; never is later than any.
    ends.sort_by_key(|end| std::cmp::Reverse(end.unwrap_or(Duration::MAX)));
    let decisive = if ends.len() < needed { 0 } else { needed - 1 };
    Some(Holder {
        owner_label: Some(most.owner.clone()).filter(|owner| !owner.is_empty()),
        remaining: ends[decisive],
        nodes: ends.len(),
        quorum: needed,
        foreign: most.digest.is_empty(),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sight(digest: &str, seconds: Option<u64>) -> NodeHolder {
        NodeHolder {
            digest: digest.to_owned(),
            owner: format!("of {digest}"),
            remaining: seconds.map(Duration::from_secs),
        }
    }

    #[test]
    fn who_has_the_most_nodes_holds_it() {
        let (a, b) = (|s| sight("a", Some(s)), |s| sight("b", Some(s)));
        for (sights, owner, remaining, nodes) in [
            (vec![a(3), a(5), a(4)], "of a", Some(4), 3),
            (vec![a(3), b(5), a(4)], "of a", Some(3), 2),
            (vec![a(3)], "of a", Some(3), 1),
            (vec![b(2), a(3), b(9)], "of b", Some(2), 2),
            (vec![sight("a", None), a(4), a(2)], "of a", Some(4), 3),
            (vec![sight("a", None), sight("a", None)], "of a", None, 2),
        ] {
            let found = merge_holders(&sights, 2).unwrap();
            assert_eq!(found.owner_label.as_deref(), Some(owner));
            assert_eq!(found.remaining, remaining.map(Duration::from_secs));
            assert_eq!((found.nodes, found.has_quorum()), (nodes, nodes >= 2));
        }
        assert_eq!(merge_holders(&[], 2), None);
        for (sights, foreign) in [
            (vec![a(3), a(3), sight("", None)], false),
            (vec![sight("", None)], true),
        ] {
            assert_eq!(
                merge_holders(&sights, 2).map(|found| found.foreign),
                Some(foreign)
            );
        }
        let nameless = NodeHolder {
            owner: String::new(),
            ..sight("a", None)
        };
        assert_eq!(merge_holders(&[nameless], 1).unwrap().owner_label, None);
    }
}
