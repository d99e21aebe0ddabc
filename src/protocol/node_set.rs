//! A set of nodes in one word.
//!
//! Tests: beside `quorum.rs`, which counts votes with it.

/// The maximal number of configured nodes: a [`NodeSet`] fits one word.
pub(crate) const MAX_NODES: usize = 64;

/// A set of nodes, by their indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSet(u64);

impl NodeSet {
    pub(crate) fn single(node: usize) -> NodeSet {
        NodeSet(1 << node)
    }

    pub(crate) fn all(nodes: usize) -> NodeSet {
        NodeSet((0..nodes).fold(0, |all, node| all | 1 << node))
    }

    pub(crate) fn insert(&mut self, node: usize) {
        self.0 |= 1 << node;
    }

    pub(crate) fn contains(self, node: usize) -> bool {
        self.0 & (1 << node) != 0
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> NodeSet {
        NodeSet(bits)
    }

    pub(crate) fn difference(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & !other.0)
    }

    pub(crate) fn union(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 | other.0)
    }

    /// Returns the node with the lowest index.
    pub(crate) fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }
}
