//! Decides on which nodes an extended lease is restored (S5).

use crate::protocol::node_set::NodeSet;

/// The nodes that lost the key of a lease, during one extension.
///
/// A node is restored only after a quorum has confirmed the lease: before that, another caller may
/// have acquired the lock on the other nodes.
#[derive(Debug, Default)]
pub(crate) struct Restoration {
    is_confirmed: bool,
    absent: NodeSet,
}

impl Restoration {
    /// Records that a node does not have the key. Returns whether it is restored now.
    #[must_use]
    pub(crate) fn record_absent(&mut self, node: usize) -> bool {
        self.absent.insert(node);
        self.is_confirmed
    }

    /// Records that a quorum confirmed the lease. Returns the nodes that are restored now.
    #[must_use]
    pub(crate) fn confirm(&mut self) -> NodeSet {
        self.is_confirmed = true;
        self.absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_nodes_are_restored_only_after_confirmation() {
        let mut restoration = Restoration::default();
        assert!(!restoration.record_absent(0));
        assert!(!restoration.record_absent(2));
        let both = NodeSet::single(0).union(NodeSet::single(2));
        assert_eq!(restoration.confirm(), both);
        assert!(restoration.record_absent(1));
    }

    #[test]
    fn confirmation_without_absent_nodes_restores_none() {
        assert_eq!(Restoration::default().confirm(), NodeSet::default());
    }
}
