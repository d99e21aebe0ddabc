//! The hasher of hash maps, whose order of iteration follows from the seed in a simulation.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

use crate::tests::simulation::runtime::context;

/// Builds hashers with the key of one map.
#[derive(Clone, Debug)]
pub(crate) struct HashState(u64);

impl Default for HashState {
    fn default() -> HashState {
        let drawn = context::draw();
        HashState(drawn.unwrap_or_else(|| RandomState::new().hash_one(0)))
    }
}

impl BuildHasher for HashState {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}
