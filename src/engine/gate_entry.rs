//! The gate entry of a waiting writer, which keeps new readers out (S10).
//!
//! An entry never outlives its acquire, and a writer without a quorum has none.
//!
//! Tests: `src/tests/engine/read_write.rs`, such as `timed_out_writer_releases_its_gate_entry`.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::error::error::Error;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::token::Token;
use crate::transport::node_group::NodeGroup;

/// A writer's gate entry, under one token for all attempts of an acquire. Its drop releases it.
pub(super) struct GateEntry<'a> {
    nodes: &'a NodeGroup,
    pub(super) lease: Arc<Lease>,
}

impl<'a> GateEntry<'a> {
    pub(super) fn new(engine: &'a Engine, params: &AcquireParams) -> Result<GateEntry<'a>, Error> {
        let token = Token::fresh(engine.settings.owner_label.as_ref())?;
        let key = params.keys.first().clone();
        Ok(GateEntry {
            nodes: &engine.nodes,
            lease: Arc::new(Lease::new(key, token, LeaseKind::GateEntry)),
        })
    }
}

impl Drop for GateEntry<'_> {
    fn drop(&mut self) {
        self.nodes
            .release_unawaited(&self.lease, NodeSet::default());
    }
}
