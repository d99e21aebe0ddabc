//! Foreign values under the keys of locks. They are stored only where they displace no holder,
//! because locks do not protect against data that is overwritten.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::chaos::LEFT;
use crate::chaos::worker::{KEYS, SEMAPHORE};
use crate::support::fixtures::{PREFIX, ask, try_ask};
use crate::support::servers::Server;

const FOREIGN: &str = "foreign";

/// The command that stores a value, and the lock's key under which it does.
const VALUES: [(&str, &str); 9] = [
    ("RPUSH", ""),
    ("RPUSH", ":writer"),
    ("RPUSH", ":turn"),
    ("ZADD", ":readers"),
    ("ZADD", ":readers"),
    ("ZADD", ":gate"),
    ("ZADD", ":gate"),
    ("HSETNX", ":permits"),
    ("HSETNX", ":permits"),
];
/// Fields of semaphores: the number of permits, two permits, and invalid permits.
const FIELDS: [&str; 4] = ["permits", "0", "1", "junk"];

/// Removes foreign members from a key. Sets that had no expiry because of them get one.
const REMOVE: &str = "
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'list' then
  redis.call('DEL', KEYS[1])
elseif kind == 'zset' then
  redis.call('ZREM', KEYS[1], ARGV[1])
elseif kind == 'hash' and redis.call('HGET', KEYS[1], ARGV[2]) == ARGV[1] then
  redis.call('HDEL', KEYS[1], ARGV[2])
end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end";

/// Sets an expiry on every key without one, except fence counters.
const END_ALL: &str = "
for _, key in ipairs(redis.call('KEYS', '*')) do
  if not string.find(key, ':fence$') and redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, ARGV[1]) end
end";

/// Sets an expiry on sets without one. A script that added an entry may have been denied the
/// command that sets the expiry; the next script would remove such an entry, but none need follow.
pub(super) fn end_all(node: &Server) {
    let left = LEFT.as_millis().to_string();
    ask::<()>(node, &["EVAL", END_ALL, "0", &left]);
}

/// A value under a lock's key that the library did not write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    command: &'static str,
    ending: &'static str,
    key: String,
    field: &'static str,
}

impl Foreign {
    pub(super) fn draw(rng: &mut StdRng) -> Foreign {
        let (command, ending) = VALUES[rng.random_range(0..VALUES.len())];
        let name = match ending {
            ":permits" => SEMAPHORE,
            _ => KEYS[rng.random_range(0..KEYS.len())],
        };
        Foreign {
            command,
            ending,
            key: match ending {
                "" => format!("{PREFIX}{name}"),
                _ => format!("{{{PREFIX}{name}}}{ending}"),
            },
            field: FIELDS[rng.random_range(0..FIELDS.len())],
        }
    }

    /// Stores the value. Returns `false` if the key exists already.
    pub(super) fn put(&self, node: &Server) -> bool {
        let rest: &[&str] = match self.command {
            "RPUSH" => &[FOREIGN],
            "ZADD" => &["+inf", FOREIGN],
            _ => &[self.field, FOREIGN],
        };
        let words = [&[self.command, &self.key], rest].concat();
        // The key of a held lock is of another type.
        try_ask::<u64>(node, &words).is_ok_and(|added| added > 0)
    }

    pub(super) fn remove(&self, node: &Server) {
        let left = LEFT.as_millis().to_string();
        let words = ["EVAL", REMOVE, "1", &self.key, FOREIGN, self.field, &left];
        ask::<()>(node, &words);
    }

    /// Returns a description of the value.
    pub(super) fn what(&self) -> String {
        let field = match self.command {
            "HSETNX" => self.field,
            _ => "",
        };
        format!("{} {} {field}", self.command, self.ending)
            .trim_end()
            .to_owned()
    }
}
