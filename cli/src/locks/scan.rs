//! Names of the locks on one server, found with SCAN, which does not block a server as KEYS does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Cmd, Connection, RedisResult};

use crate::locks::{glob, keys};

/// The keys that a server visits per reply, in about 100 µs of its time.
const COUNT: u32 = 1000;

/// The names to look for.
#[derive(Clone, Debug)]
pub(crate) struct NamePattern {
    pub(crate) prefix: String,
    pub(crate) pattern: String,
    /// The filter of the server. It matches the keys of all kinds of locks, and some others.
    keys: String,
}

/// The result of a scan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) names: BTreeSet<String>,
    /// How long the server was busy, round trips included.
    pub(crate) took: Duration,
}

impl NamePattern {
    pub(crate) fn new(prefix: &str, pattern: &str) -> NamePattern {
        // A set or an escape that the pattern does not close would take the `*` behind it.
        let rest = match pattern.contains(['[', '\\']) {
            true => "*".to_owned(),
            false => format!("{pattern}*"),
        };
        // A derived key has braces around the prefix and the name.
        let keys = match prefix {
            "" => "*".to_owned(),
            prefix => format!("*{}{rest}", glob::literally(prefix)),
        };
        NamePattern {
            prefix: prefix.to_owned(),
            pattern: pattern.to_owned(),
            keys,
        }
    }

    /// Returns the name of a key, if it is one to look for.
    fn name_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = keys::name_of(&self.prefix, key)?;
        glob::matches(&self.pattern, name).then_some(name)
    }

    /// Visits all keys of a server. Returns a partial result when `keep_running` returns false.
    pub(crate) fn scan(
        &self,
        connection: &mut Connection,
        keep_running: &(dyn Fn() -> bool + Sync),
    ) -> RedisResult<Names> {
        let mut found = Names::default();
        let mut cursor = 0_u64;
        while keep_running() {
            let start = Instant::now();
            let mut scan = Cmd::new();
            scan.arg("SCAN").arg(cursor);
            scan.arg("MATCH").arg(&self.keys).arg("COUNT").arg(COUNT);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query(connection)?;
            found.took += start.elapsed();
            // A key that is not UTF-8 belongs to no lock.
            let keys = keys.iter().filter_map(|key| std::str::from_utf8(key).ok());
            let names = keys.filter_map(|key| self.name_of(key));
            found.names.extend(names.map(str::to_owned));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_pattern_matches_the_keys_of_all_kinds() {
        for (prefix, pattern, name) in [
            ("redguard:", "*", "a"),
            ("redguard:", "shop:*", "shop:1"),
            ("re[x]:", "[ab]", "a"),
            ("redguard:", r"\[x\]*", "[x]*"),
            ("", "*", "a"),
            ("p:", "a", "a"),
        ] {
            let wanted = NamePattern::new(prefix, pattern);
            let keys = keys::LockKeys::of(prefix, name);
            for key in keys.derived[..4].iter().chain([&keys.lock]) {
                assert!(glob::matches(&wanted.keys, key), "{} {key}", wanted.keys);
                assert_eq!(wanted.name_of(key), Some(name));
            }
        }
        assert_eq!(NamePattern::new("p:", "a").name_of("p:ab"), None);
    }
}
