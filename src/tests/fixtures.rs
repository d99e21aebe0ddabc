//! Leases and addresses for the unit tests of all layers.

use std::sync::Arc;

#[cfg(not(loom))]
use crate::config::endpoint::EndpointKind;
#[cfg(not(loom))]
use crate::config::settings::Settings;
#[cfg(not(loom))]
use crate::error::error::Error;
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
