//! The sides: what the processes lock with.

use std::io;

use tempfile::NamedTempFile;

use crate::Result;
use crate::etcd::Etcd;
use redguard_servers::Server;

/// What the processes lock with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// flock(1), which has no network and knows its waiters.
    Flock,
    /// `etcdctl lock` on one member of etcd, which runs a command under a lock, too.
    Etcd,
    /// The library, on this number of nodes.
    Redguard(usize),
}

/// The file or the servers of a cell.
pub(crate) enum Place {
    File(NamedTempFile),
    Etcd(Etcd),
    Nodes(Vec<Server>),
}

impl Side {
    /// In order. flock(1) is the first, because the others are compared with it.
    pub(crate) const ALL: [Side; 5] = [
        Side::Flock,
        Side::Etcd,
        Side::Redguard(1),
        Side::Redguard(3),
        Side::Redguard(5),
    ];

    /// Returns the name of a row.
    pub(crate) fn row(self, processes: usize) -> String {
        match self {
            Side::Flock => format!("{processes} processes, flock(1)"),
            Side::Etcd => format!("{processes} processes, etcdctl lock"),
            Side::Redguard(1) => format!("{processes} processes, 1 node"),
            Side::Redguard(nodes) => format!("{processes} processes, {nodes} nodes"),
        }
    }

    /// Creates the file, or starts the servers. Returns `None` if etcd is not installed.
    pub(crate) fn start(self) -> Result<Option<Place>> {
        Ok(match self {
            Side::Flock => Some(Place::File(NamedTempFile::new()?)),
            Side::Etcd => Etcd::start(1)?.map(Place::Etcd),
            Side::Redguard(nodes) => {
                let servers = (0..nodes).map(|_| Server::start());
                Some(Place::Nodes(servers.collect::<io::Result<_>>()?))
            }
        })
    }
}

impl Place {
    /// Returns the words from which a process knows its work.
    pub(crate) fn work(&self) -> Vec<String> {
        match self {
            Place::File(file) => vec!["flock".into(), file.path().display().to_string()],
            Place::Etcd(etcd) => {
                // A busy machine is slow, which is no error.
                let limits = ["--dial-timeout", "30s", "--command-timeout", "30s"];
                let endpoints = etcd.endpoints();
                let words = ["etcdctl", "--endpoints", &endpoints].into_iter();
                let words = words.chain(limits).chain(["lock", "shared"]);
                words.map(str::to_owned).collect()
            }
            Place::Nodes(servers) => {
                let nodes: Vec<String> = servers.iter().map(Server::addr).collect();
                vec!["redguard".into(), nodes.join(",")]
            }
        }
    }

    pub(crate) fn servers(&self) -> &[Server] {
        match self {
            Place::Nodes(servers) => servers,
            Place::File(_) | Place::Etcd(_) => &[],
        }
    }
}
