//! Foreign values under the keys of locks, which are put there only where they take nothing from a holder: a test of locks is not
//! about data that is overwritten.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::chaos::LEFT;
use crate::chaos::worker::{KEYS, SEMAPHORE};
use crate::support::fixtures::{PREFIX, ask, try_ask};
use crate::support::servers::Server;

const FOREIGN: &str = "foreign";

/// What a value is put by, and under which key of a lock.
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
/// Fields of semaphores: how many permits there are, two permits, and none that they have.
const FIELDS: [&str; 4] = ["permits", "0", "1", "junk"];

/// Takes out of a key what is foreign. What is left of sets that had none because of it gets an end.
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

/// Gives an end to all that has none but the count of fencing tokens.
const END_ALL: &str = "
for _, key in ipairs(redis.call('KEYS', '*')) do
  if not string.find(key, ':fence$') and redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, ARGV[1]) end
end";

/// Ends what has no end: sets to which a script has added an entry, and then was not allowed to say when it ends. The next script
/// sweeps such an entry, but there need not be one.
pub(super) fn end_all(node: &Server) {
    let left = LEFT.as_millis().to_string();
    ask::<()>(node, &["EVAL", END_ALL, "0", &left]);
}

/// A value under one of a lock's keys that is none of the library's.
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

    /// `false` where something is there that it would overwrite.
    pub(super) fn put(&self, node: &Server) -> bool {
        let rest: &[&str] = match self.command {
            "RPUSH" => &[FOREIGN],
            "ZADD" => &["+inf", FOREIGN],
            _ => &[self.field, FOREIGN],
        };
        let words = [&[self.command, &self.key], rest].concat();
        // A lock's key that is held is of another type.
        try_ask::<u64>(node, &words).is_ok_and(|added| added > 0)
    }

    pub(super) fn remove(&self, node: &Server) {
        let left = LEFT.as_millis().to_string();
        let words = ["EVAL", REMOVE, "1", &self.key, FOREIGN, self.field, &left];
        ask::<()>(node, &words);
    }

    /// What it is, in words.
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
