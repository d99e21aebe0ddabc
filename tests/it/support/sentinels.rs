//! A real master with a replica, and real sentinels that watch it.

use std::collections::HashMap;
use std::time::Duration;

use redguard::Endpoint;

use crate::support::servers::Server;
use crate::support::{eventually, raw};

/// The name of the master.
pub(crate) const MASTER: &str = "mymaster";

/// Longest time until the sentinels know each other: they announce themselves every two seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// A master and its replica, with the sentinels that watch them.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) master: Server,
    pub(crate) replica: Server,
    pub(crate) sentinels: Vec<Server>,
}

impl Watched {
    /// Starts `sentinels` sentinels, of which two (or the only sentinel) agree that the master is
    /// down after half a second of silence.
    ///
    /// # Panics
    /// If they cannot start.
    pub(crate) fn start(sentinels: usize) -> Watched {
        // The master delays replication by this time, to wait for more replicas.
        let options = || Server::options().arg("--repl-diskless-sync-delay", "0");
        let master = start(options());
        let port = master.port().to_string();
        let replica = start(options().args(&["--replicaof", "127.0.0.1", &port.to_string()]));
        // A sentinel that starts before the replica looks for replicas again only after ten
        // seconds.
        eventually(LIMIT, "the replica is in sync", || {
            let mut connection = raw(&master);
            let info: String = redis::cmd("INFO")
                .arg("replication")
                .query(&mut connection)
                .unwrap();
            info.contains("state=online")
        });
        let quorum = sentinels.min(2);
        let lines = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} {quorum}\n\
             sentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 5000\n"
        );
        let new = |_| start(Server::options().sentinel(&lines));
        let sentinels: Vec<Server> = (0..sentinels).map(new).collect();
        let others = (sentinels.len() - 1).to_string();
        eventually(LIMIT, "all know all", || {
            sentinels.iter().all(|sentinel| {
                let known = known(sentinel);
                known["num-slaves"] == "1" && known["num-other-sentinels"] == others
            })
        });
        Watched {
            master,
            replica,
            sentinels,
        }
    }

    /// Returns the endpoint of the master, with the addresses of all sentinels.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::sentinel(MASTER, self.sentinels.iter().map(Server::addr))
    }
}

/// Returns the fields of the master as a sentinel reports them.
fn known(sentinel: &Server) -> HashMap<String, String> {
    let mut question = redis::cmd("SENTINEL");
    question.arg("MASTER").arg(MASTER);
    question.query(&mut raw(sentinel)).unwrap()
}

fn start(options: crate::support::servers::Options) -> Server {
    options.start().unwrap_or_else(|error| panic!("{error}"))
}
