//! Real clusters of temporary servers.

use std::sync::LazyLock;
use std::time::Duration;

use redguard::Endpoint;
use redis::FromRedisValue;

use crate::support::servers::{Options, Server, free_port};
use crate::support::{eventually, raw};

const SLOTS: usize = 16_384;
/// The limit of waits. Servers need some seconds before they trust a cluster.
const LIMIT: Duration = Duration::from_secs(60);

/// A cluster, with its masters in the order of their hash slots.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) masters: Vec<Server>,
}

impl Cluster {
    /// Returns three masters, for all tests that leave them alive.
    pub(crate) fn shared() -> &'static Cluster {
        static CLUSTER: LazyLock<Cluster> =
            LazyLock::new(|| Cluster::start(Duration::from_secs(30)));
        &CLUSTER
    }

    /// Starts three masters. The others declare a master failed after `node_timeout` of silence.
    ///
    /// # Panics
    /// If they cannot start.
    pub(crate) fn start(node_timeout: Duration) -> Cluster {
        let masters: Vec<Server> = (0..3).map(|_| server(node_timeout)).collect();
        for (number, master) in masters.iter().enumerate() {
            let slot = |number: usize| number * SLOTS / masters.len();
            let (first, last) = (slot(number), slot(number + 1) - 1);
            // Servers that start with equal epochs would first have to resolve the collision.
            tell(master, &["SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            tell(
                master,
                &["ADDSLOTSRANGE", &first.to_string(), &last.to_string()],
            );
            // Every server meets every other, because gossip spreads only once per second.
            masters[..number]
                .iter()
                .for_each(|other| meet(other, master));
        }
        let cluster = Cluster { masters };
        eventually(LIMIT, "the cluster is healthy", || {
            let mut masters = cluster.masters.iter();
            masters.all(|master| is_in_order(master, cluster.masters.len()))
        });
        cluster
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::cluster(self.masters.iter().map(Server::addr))
    }

    /// Adds a replica of one of the masters, and waits until it is in sync.
    pub(crate) fn replica_of(&self, master: usize, node_timeout: Duration) -> Server {
        let replica = server(node_timeout);
        let master = &self.masters[master];
        let masters = self.masters.iter();
        masters.for_each(|master| meet(master, &replica));
        let id = id(master);
        eventually(LIMIT, "the replica knows its master", || {
            try_tell::<String>(&replica, &["REPLICATE", &id]).is_ok()
        });
        eventually(LIMIT, "the replica is in sync", || {
            let info: String = redis::cmd("INFO")
                .arg("replication")
                .query(&mut raw(master))
                .unwrap();
            info.contains("state=online")
        });
        // The masters that vote for the replica must know it.
        eventually(LIMIT, "all know the replica", || {
            let known = format!(":{}@", replica.port());
            let is_known = |nodes: String| {
                nodes.lines().any(|line| {
                    line.contains(&known) && line.contains(&id) && line.contains("slave")
                })
            };
            self.masters
                .iter()
                .all(|master| is_known(ask(master, &["NODES"])))
        });
        // The replica must know the voting masters too: a dead master cannot announce them.
        eventually(LIMIT, "the replica knows all masters", || {
            is_in_order(&replica, self.masters.len() + 1)
        });
        replica
    }

    /// Returns the index of the master that serves a key, and the key's hash slot.
    pub(crate) fn owner(&self, key: &str) -> (usize, String) {
        let slot: usize = ask(&self.masters[0], &["KEYSLOT", key]);
        (slot * self.masters.len() / SLOTS, slot.to_string())
    }

    /// Begins the migration of a hash slot.
    pub(crate) fn begin_move(&self, slot: &str, from: usize, to: usize) {
        let [from, to] = [from, to].map(|number| &self.masters[number]);
        tell(to, &["SETSLOT", slot, "IMPORTING", &id(from)]);
        tell(from, &["SETSLOT", slot, "MIGRATING", &id(to)]);
    }

    /// Moves the keys of a hash slot.
    pub(crate) fn move_keys(&self, slot: &str, from: usize, to: usize) {
        let keys: Vec<String> = ask(&self.masters[from], &["GETKEYSINSLOT", slot, "1000"]);
        let port = self.masters[to].port().to_string();
        let mut migrate = redis::cmd("MIGRATE");
        migrate
            .arg(&["127.0.0.1", &port, "", "0", "10000", "KEYS"])
            .arg(keys);
        migrate.exec(&mut raw(&self.masters[from])).unwrap();
    }

    /// Ends the migration of a hash slot. The other servers learn it by gossip.
    pub(crate) fn end_move(&self, slot: &str, from: usize, to: usize) {
        let new = id(&self.masters[to]);
        for number in [to, from] {
            tell(&self.masters[number], &["SETSLOT", slot, "NODE", &new]);
        }
    }
}

/// Starts a server that belongs to no cluster yet.
pub(crate) fn server(node_timeout: Duration) -> Server {
    let bus = free_port().unwrap().to_string();
    let options = Options::default()
        .arg("--cluster-enabled", "yes")
        .arg("--cluster-port", &bus)
        .arg(
            "--cluster-node-timeout",
            &node_timeout.as_millis().to_string(),
        )
        .arg("--repl-diskless-sync-delay", "0");
    options.start().unwrap_or_else(|error| panic!("{error}"))
}

fn meet(one: &Server, other: &Server) {
    let bus: Vec<String> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("cluster-port")
        .query(&mut raw(other))
        .unwrap();
    tell(
        one,
        &["MEET", "127.0.0.1", &other.port().to_string(), &bus[1]],
    );
}

fn is_in_order(master: &Server, count: usize) -> bool {
    let info: String = ask(master, &["INFO"]);
    info.contains("cluster_state:ok") && info.contains(&format!("cluster_known_nodes:{count}"))
}

fn id(server: &Server) -> String {
    ask(server, &["MYID"])
}

fn tell(server: &Server, words: &[&str]) {
    ask::<()>(server, words);
}

/// # Panics
/// On an error reply.
pub(crate) fn ask<T: FromRedisValue>(server: &Server, words: &[&str]) -> T {
    try_tell(server, words).unwrap()
}

fn try_tell<T: FromRedisValue>(server: &Server, words: &[&str]) -> redis::RedisResult<T> {
    redis::cmd("CLUSTER").arg(words).query(&mut raw(server))
}
