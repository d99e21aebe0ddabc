//! The shapes that a conformance suite runs on: how many nodes there are, and what is wrong with one of them.

use redguard::Endpoint;

#[cfg(feature = "cluster")]
use crate::support::clusters::Cluster;
use crate::support::servers::Server;
use crate::support::{on_socket, servers};

/// Two handles that stand for two processes, and what is behind them.
pub(crate) struct Rig<H> {
    pub(crate) handles: [H; 2],
    pub(crate) addresses: Vec<Endpoint>,
    pub(crate) servers: Vec<Server>,
    /// All nodes are well: then two contenders cannot both lose.
    pub(crate) whole: bool,
}

/// Makes a handle for the nodes at these addresses, on which these servers run.
type Connect<H> = fn(&[Endpoint], &[Server]) -> H;

impl<H: Clone> Rig<H> {
    pub(crate) fn redis(nodes: usize, connect: Connect<H>) -> Rig<H> {
        let servers = servers(nodes);
        Rig::on(addresses(&servers), servers, true, connect)
    }

    /// One node, on a socket in the file system.
    pub(crate) fn socket(connect: Connect<H>) -> Rig<H> {
        let (server, url) = on_socket("");
        Rig::on(vec![url.into()], vec![server], true, connect)
    }

    /// One node that is a cluster of three masters. Which of them has a key is not for the rig to know.
    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(connect: Connect<H>) -> Rig<H> {
        let cluster = Cluster::shared();
        Rig::on(vec![cluster.endpoint()], Vec::new(), true, connect)
    }

    /// Dead before anybody connects.
    pub(crate) fn one_dead(connect: Connect<H>) -> Rig<H> {
        let mut servers = servers(3);
        let addresses = addresses(&servers);
        // Dropped: in a static, one that is only killed would leave its files behind.
        drop(servers.remove(0));
        Rig::on(addresses, servers, false, connect)
    }

    /// Hung from when both have connected.
    pub(crate) fn one_hung(connect: Connect<H>) -> Rig<H> {
        let servers = servers(3);
        let addresses = addresses(&servers);
        let rig = Rig::on(addresses, servers, false, connect);
        rig.servers[1].stop().unwrap();
        rig
    }

    /// One handle and a clone of it, without any nodes.
    pub(crate) fn local(handle: H) -> Rig<H> {
        Rig {
            handles: [handle.clone(), handle],
            addresses: Vec::new(),
            servers: Vec::new(),
            whole: true,
        }
    }

    fn on(
        addresses: Vec<Endpoint>,
        servers: Vec<Server>,
        whole: bool,
        connect: Connect<H>,
    ) -> Rig<H> {
        Rig {
            handles: [(); 2].map(|()| connect(&addresses, &servers)),
            addresses,
            servers,
            whole,
        }
    }
}

fn addresses(servers: &[Server]) -> Vec<Endpoint> {
    servers.iter().map(|s| s.addr().into()).collect()
}

/// One `#[test]` per function of a suite, on each shape. A function that is not named in it is dead code.
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
