//! The baselines, *raw* on one node and *scatter* on several: the cheapest lock on bare
//! connections.

use std::fmt::Write;
use std::time::Duration;

use redis::{Cmd, Connection, IntoConnectionInfo, Value};

use crate::Result;

/// Compares and deletes, as in the Redlock text.
pub(crate) const RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

/// Returns a connection without Nagle's delay.
pub(crate) fn connect(url: &str) -> Result<Connection> {
    let info = url.into_connection_info()?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let client = redis::Client::open(info.set_tcp_settings(tcp))?;
    Ok(client.get_connection()?)
}

/// One thread's connections, one per node, with its lock.
pub(crate) struct Bare {
    connections: Vec<Connection>,
    key: String,
    ttl: Duration,
    token: String,
    sha: String,
    cmd: Cmd,
    wire: Vec<u8>,
}

impl Bare {
    pub(crate) fn connect(urls: &[String], name: &str, ttl: Duration) -> Result<Bare> {
        let mut sha = String::new();
        let mut connections = Vec::new();
        for url in urls {
            let mut connection = connect(url)?;
            let mut load = redis::cmd("SCRIPT");
            sha = load.arg("LOAD").arg(RELEASE).query(&mut connection)?;
            connections.push(connection);
        }
        Ok(Bare {
            connections,
            key: format!("redguard:{name}"), // with redguard's default prefix
            ttl,
            token: String::new(),
            sha,
            cmd: Cmd::new(),
            wire: Vec::new(),
        })
    }

    pub(crate) fn acquire(&mut self) -> Result<()> {
        self.token.clear();
        for byte in rand::random::<[u8; 20]>() {
            write!(self.token, "{byte:02x}")?;
        }
        self.cmd.clear();
        let set = self.cmd.arg("SET").arg(&self.key).arg(&self.token);
        set.arg("NX").arg("PX").arg(self.ttl.as_millis() as u64);
        self.scatter(&Value::Okay)
    }

    pub(crate) fn release(&mut self) -> Result<()> {
        self.cmd.clear();
        let script = self.cmd.arg("EVALSHA").arg(&self.sha).arg(1);
        script.arg(&self.key).arg(&self.token);
        self.scatter(&Value::Int(1))
    }

    /// Writes the command to all nodes, then reads all replies. Every node must grant, not only a
    /// majority.
    fn scatter(&mut self, expected: &Value) -> Result<()> {
        self.wire.clear();
        self.cmd.write_packed_command(&mut self.wire);
        for connection in &mut self.connections {
            connection.send_packed_command(&self.wire)?;
        }
        for connection in &mut self.connections {
            let value = connection.recv_response()?;
            if value != *expected {
                return Err(format!("{}: {value:?}, not {expected:?}", self.key).into());
            }
        }
        Ok(())
    }
}
