//! Topologies for the conformance suites: numbers of nodes, and a fault of one node.

use redguard::Endpoint;

#[cfg(feature = "cluster")]
use crate::support::clusters::Cluster;
use crate::support::servers::Server;
use crate::support::{on_socket, servers};

/// Two handles that stand for two processes, with their servers.
pub(crate) struct Rig<H> {
    pub(crate) handles: [H; 2],
    pub(crate) addresses: Vec<Endpoint>,
    pub(crate) servers: Vec<Server>,
}

/// Creates a handle for the nodes at these addresses, which run on these servers.
type Connect<H> = fn(&[Endpoint], &[Server]) -> H;

impl<H: Clone> Rig<H> {
    pub(crate) fn redis(nodes: usize, connect: Connect<H>) -> Rig<H> {
        let servers = servers(nodes);
        Rig::on(addresses(&servers), servers, connect)
    }

    /// One node on a Unix socket.
    pub(crate) fn socket(connect: Connect<H>) -> Rig<H> {
        let (server, url) = on_socket("");
        Rig::on(vec![url.into()], vec![server], connect)
    }

    /// One node that is a cluster of three masters. The fixture does not depend on which of them
    /// serves a key.
    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(connect: Connect<H>) -> Rig<H> {
        let cluster = Cluster::shared();
        Rig::on(vec![cluster.endpoint()], Vec::new(), connect)
    }

    /// One node is dead before the handles connect.
    pub(crate) fn one_dead(connect: Connect<H>) -> Rig<H> {
        let mut servers = servers(3);
        let addresses = addresses(&servers);
        // Dropped, because a killed server in a static would leave its files behind.
        drop(servers.remove(0));
        Rig::on(addresses, servers, connect)
    }

    /// One node hangs after both handles have connected.
    pub(crate) fn one_hung(connect: Connect<H>) -> Rig<H> {
        let servers = servers(3);
        let addresses = addresses(&servers);
        let rig = Rig::on(addresses, servers, connect);
        rig.servers[1].stop().unwrap();
        rig
    }

    /// A handle and its clone, without nodes.
    pub(crate) fn local(handle: H) -> Rig<H> {
        Rig {
            handles: [handle.clone(), handle],
            addresses: Vec::new(),
            servers: Vec::new(),
        }
    }

    fn on(addresses: Vec<Endpoint>, servers: Vec<Server>, connect: Connect<H>) -> Rig<H> {
        Rig {
            handles: [(); 2].map(|()| connect(&addresses, &servers)),
            addresses,
            servers,
        }
    }
}

fn addresses(servers: &[Server]) -> Vec<Endpoint> {
    servers.iter().map(|s| s.addr().into()).collect()
}

/// Generates a `#[test]` per function of a suite and topology. A function that is missing here is
/// dead code.
macro_rules! suite {
    ($handle:ty, local $local:expr, redis $connect:expr; $($test:ident)*) => {
        suite! { @shape one $handle: Rig::redis(1, $connect); $($test)* }
        suite! { @shape three $handle: Rig::redis(3, $connect); $($test)* }
        suite! { @shape five $handle: Rig::redis(5, $connect); $($test)* }
        suite! { @shape three_one_dead $handle: Rig::one_dead($connect); $($test)* }
        suite! { @shape three_one_hung $handle: Rig::one_hung($connect); $($test)* }
        suite! { @shape socket $handle: Rig::socket($connect); $($test)* }
        #[cfg(feature = "cluster")]
        suite! { @shape cluster $handle: Rig::cluster($connect); $($test)* }
        suite! { @shape local $handle: Rig::local($local); $($test)* }
    };
    (@shape $shape:ident $handle:ty: $rig:expr; $($test:ident)*) => {
        mod $shape {
            use super::*;

            static RIG: std::sync::LazyLock<Rig<$handle>> = std::sync::LazyLock::new(|| $rig);

            $(
                #[test]
                fn $test() {
                    super::$test(&RIG);
                }
            )*
        }
    };
}

pub(crate) use suite;
