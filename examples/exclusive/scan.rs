//! Names of the locks on the nodes, found with SCAN, which does not block a server as KEYS does.

use redis::{Client, Connection, RedisError, RedisResult};
use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::Duration;

/// Keys that a server visits per reply, in about 100 µs of its time.
const COUNT: u32 = 1000;

/// Nodes with a connection each, because the library has no function to list keys.
pub(crate) struct Scanner {
    nodes: Vec<Node>,
    prefix: String,
    pattern: String,
}

struct Node {
    name: String,
    client: RedisResult<Client>,
    timeout: Duration,
    /// Kept for the next scan, except after an error, when a reply may still arrive.
    connection: Option<Connection>,
}

/// Result of a scan.
pub(crate) struct Names {
    pub(crate) names: BTreeSet<String>,
    pub(crate) absent: Vec<Absent>,
}

/// A node that could not be scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) node: String,
    pub(crate) cause: String,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.cause)
    }
}

impl Scanner {
    /// Prepares scans for names that match a glob pattern of Redis. Does not connect.
    pub(crate) fn new(
        addresses: &[String],
        names: impl IntoIterator<Item = String>,
        timeout: Duration,
        prefix: &str,
        pattern: &str,
    ) -> Scanner {
        let nodes = addresses.iter().zip(names).map(|(address, name)| Node {
            name,
            client: Client::open(url(address)),
            timeout,
            connection: None,
        });
        Scanner {
            nodes: nodes.collect(),
            prefix: prefix.to_owned(),
            pattern: literally(prefix) + pattern,
        }
    }

    /// Asks all nodes at once, except nodes that are known to be absent, given with their causes.
    /// Blocks until the slowest node has visited all its keys; at most for five times the timeout
    /// per connect, and for the timeout per reply. Calls `keep_running` between two replies.
    pub(crate) fn scan(
        &mut self,
        absent: &[Option<String>],
        keep_running: &(dyn Fn() -> bool + Sync),
    ) -> Names {
        let (prefix, pattern) = (&self.prefix, &self.pattern);
        let mut found = Names {
            names: BTreeSet::new(),
            absent: Vec::new(),
        };
        thread::scope(|scope| {
            let mut asked = Vec::new();
            for (node, cause) in self.nodes.iter_mut().zip(absent) {
                let name = node.name.clone();
                if let Some(cause) = cause.clone() {
                    node.connection = None;
                    found.absent.push(Absent { node: name, cause });
                } else {
                    asked.push((
                        name,
                        scope.spawn(|| node.scan(prefix, pattern, keep_running)),
                    ));
                }
            }
            for (node, thread) in asked {
                match thread.join() {
                    Ok(Ok(names)) => found.names.extend(names),
                    Ok(Err(error)) => found.absent.push(Absent {
                        node,
                        cause: in_words(&error),
                    }),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        found
    }
}

impl Node {
    fn scan(
        &mut self,
        prefix: &str,
        pattern: &str,
        keep_running: &(dyn Fn() -> bool + Sync),
    ) -> RedisResult<BTreeSet<String>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let mut names = BTreeSet::new();
        let mut cursor = 0_u64;
        while keep_running() {
            let keys: Vec<Vec<u8>>;
            (cursor, keys) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(pattern)
                .arg("COUNT")
                .arg(COUNT)
                .arg("TYPE")
                .arg("string")
                .query(&mut connection)?;
            // A key that is not UTF-8 belongs to no lock.
            let texts = keys
                .into_iter()
                .filter_map(|key| String::from_utf8(key).ok());
            names.extend(texts.filter_map(|key| key.strip_prefix(prefix).map(str::to_owned)));
            if cursor == 0 {
                break;
            }
        }
        self.connection = Some(connection);
        Ok(names)
    }

    fn connect(&self) -> RedisResult<Connection> {
        let client = self.client.as_ref().map_err(RedisError::clone)?;
        let connection = client.get_connection_with_timeout(5 * self.timeout)?;
        // The timeouts of the handshake have been cleared.
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }
}

/// Parses an address as the library does.
fn url(address: &str) -> String {
    match address.trim() {
        address if address.contains("://") => address.to_owned(),
        address => format!("redis://{address}"),
    }
}

/// Returns a pattern that matches exactly this text.
fn literally(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Returns the error without the server's text, which may repeat credentials.
fn in_words(error: &RedisError) -> String {
    match error.code() {
        Some("NOPERM") => "NOPERM: its user needs the right +scan".to_owned(),
        Some(code) => format!("the node replies {code}"),
        None if error.is_timeout() => "no answer in time".to_owned(),
        None if error.is_connection_refusal() => "the connection is refused".to_owned(),
        None if error.is_io_error() => "unreachable".to_owned(),
        None => error.category().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_is_matched_literally() {
        for (text, pattern) in [
            ("redguard:", "redguard:"),
            ("a*b?", r"a\*b\?"),
            ("[x]", r"\[x\]"),
            (r"a\", r"a\\"),
            ("", ""),
            ("日本", "日本"),
        ] {
            assert_eq!(literally(text), pattern);
        }
    }
}
