//! Servers and the network in front of them, at the seam `transport::node`.

pub(crate) mod connector;
pub(crate) mod fault;
pub(crate) mod link;
#[expect(
    clippy::module_inception,
    reason = "the network is the center of its folder"
)]
pub(crate) mod network;
pub(crate) mod packet;
pub(crate) mod serve;
pub(crate) mod server;
pub(crate) mod subscriber;
