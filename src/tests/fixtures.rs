//! Leases, addresses and errors for the unit tests of all layers.

use std::sync::Arc;

#[cfg(not(loom))]
use crate::config::endpoint::EndpointKind;
#[cfg(not(loom))]
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::failed_node::FailedNode;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::token::Token;
#[cfg(not(loom))]
use crate::transport::node::address::ServerAddress;

/// A pending lease of the exclusive lock `name`.
pub(crate) fn lease(name: &str) -> Arc<Lease> {
    lease_as(name, LeaseKind::Exclusive)
}

/// A pending lease of this kind with a token of its own.
pub(crate) fn lease_as(name: &str, kind: LeaseKind) -> Arc<Lease> {
    let key = Key::parse("test:", name, kind.lock_kind()).unwrap();
    Arc::new(Lease::new(key, Token::fresh(None).unwrap(), kind))
}

/// The address of the only node of these settings.
#[cfg(not(loom))]
pub(crate) fn only(settings: &Settings) -> Result<ServerAddress, Error> {
    match settings.endpoints[0].kind() {
        EndpointKind::Server(address) => ServerAddress::from_address(address, settings),
        #[cfg(any(feature = "sentinel", feature = "cluster"))]
        _ => panic!("not the address of a server"),
    }
}

/// Creates an error of three nodes, with the failures of the nodes that did not succeed.
pub(crate) fn insufficient(operation: Operation, causes: &[NodeFailure]) -> Error {
    let causes = causes.iter().enumerate().map(|(node, cause)| FailedNode {
        node: format!("n{node}"),
        failure: cause.clone(),
        limit: None,
    });
    let causes: Box<[FailedNode]> = causes.collect();
    Error::InsufficientQuorum {
        operation,
        needed: 2,
        reachable: 3 - causes.len(),
        total: 3,
        causes,
    }
}
