//! The scripts, with the steps that each takes.
//!
//! The keys of a read-write lock, behind its name:
//!
//! | key | what it is |
//! |---|---|
//! | `:writer` | the token of the writer, with its TTL |
//! | `:readers` | the readers' tokens, sorted by the time at which each ends |
//! | `:gate` | the tokens of writers that wait, sorted by the time at which each place ends |
//! | `:turn` | `asked` while a refused reader waits, `given` while readers have their turn |
//! | `:fence` | the last number that was given out, for exclusive locks too |
//!
//! Times are the server's own, in milliseconds (`TIME`); an entry is alive up to and including its time. A sorted set ends a
//! second after its last entry, so nothing is left when nobody holds or waits. Scripts read first what can fail on its type,
//! so that they fail before they have changed anything.
//!
//! Anybody can write anything under these keys. A foreign value is left untouched, and refuses the request: of another type by
//! `WRONGTYPE`, which is also what a fence counter answers that is no number of ours. Times are bounded before they are
//! returned: beyond 2^53 no integer is exact in Lua, and infinity is none.
//!
//! A server that is out of memory refuses a script at its first write, if that may take memory, and none after it (Redis manual,
//! "Running scripts under low memory conditions"). So what only keeps a lock writes first what takes none (`PEXPIRE`,
//! `ZREMRANGEBYSCORE`, `HDEL`).
//!
//! A script that is refused a command in its middle, by a right that was withdrawn, keeps what it has changed before. So nothing
//! of a holder is deleted before what takes its place is there, and hints to others (turns, messages) are no reason to fail.

use crate::protocol::scripts::permits::{ACQUIRE_PERMIT, EXTEND_PERMIT, RELEASE_PERMIT};

/// Ends the script unless the first `locks` keys hold our token, all of them: with −1 where another's is in one of them, else
/// with 0.
macro_rules! ours {
    () => {
        "
local absent = false
for i = 1, locks do
  local value = redis.call('GET', KEYS[i])
  if value ~= ARGV[1] then
    if value then return -1 end
    absent = true
  end
end
if absent then return 0 end"
    };
}

/// The greatest integer below which all are exact in Lua, 2^53 − 1. A time beyond it is without an end.
macro_rules! most {
    () => {
        "9007199254740991"
    };
}

/// Bounds the time in the answer `refused`, which may come of a foreign value.
macro_rules! bound {
    () => {
        concat!(
            "
if refused[2] > ",
            most!(),
            " then refused[2] = -1 end"
        )
    };
}

/// Extend the lock (rule S5): never kills, never revives, never shortens.
///
/// 1. Nothing is changed unless each value is our token.
/// 2. The expiry of each becomes the greater of what is left and the TTL. A key that somebody made persistent gets an end.
///
/// KEYS: the locks that are held as one. ARGV: token, TTL in ms. Reply: 1 ours and extended, 0 one of them is not there, −1 one
/// of them is another's.
const EXTEND: &str = concat!(
    "local locks, ttl = #KEYS, tonumber(ARGV[2])",
    ours!(),
    "
for i = 1, locks do
  if redis.call('PTTL', KEYS[i]) < ttl then redis.call('PEXPIRE', KEYS[i], ttl) end
end
return 1"
);

/// Publishes in `channel`, unless that is empty, that a lock was released, and sets `heard` to one more than who heard it.
/// Where we may not publish, nobody has.
macro_rules! publish {
    () => {
        "
local heard = channel ~= '' and redis.pcall('PUBLISH', channel, '')
heard = type(heard) == 'number' and heard + 1 or 1"
    };
}

/// Release the lock of one key, as in the Redlock text: compare and delete. Every exclusive lock ends by this, so it does no
/// more than it must.
///
/// 1. Another's token is left untouched.
/// 2. What was deleted is published under its own name.
///
/// KEYS: the lock. ARGV: token, 1 if it is to be published. Reply: 0 it is not there, −1 it is another's, else it was deleted,
/// and the reply is one more than who heard of it.
const RELEASE: &str = "\
local key = KEYS[1]
local value = redis.call('GET', key)
if value ~= ARGV[1] then return value and -1 or 0 end
redis.call('DEL', key)
if ARGV[2] ~= '1' then return 1 end
local heard = redis.pcall('PUBLISH', key, '')
return type(heard) == 'number' and heard + 1 or 1";

/// Release a lock of several keys.
///
/// 1. Those are deleted that are ours, whatever the others are.
/// 2. What was deleted is published, each under its own name.
///
/// KEYS: the locks that are held as one. ARGV: token, 1 if it is to be published. Reply: 0 one of them is not there; −1 one of
/// them is another's, left untouched; else all were deleted, and the reply is one more than who heard of it, of several the
/// most.
const RELEASE_ALL: &str = concat!(
    "local answer, most, failed, ours = 1, 1, false, {}
for _, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if value == ARGV[1] then
    redis.call('DEL', key)
    ours[#ours + 1] = key
  elseif type(value) == 'table' then
    failed = value
  elseif value then
    answer = -1
  elseif answer == 1 then
    answer = 0
  end
end
for _, key in ipairs(ours) do
  local channel = ARGV[2] == '1' and key or ''",
    publish!(),
    "
  if heard > most then most = heard end
end
if failed then return failed end
return answer == 1 and most or answer"
);

/// Sets `now`.
macro_rules! now {
    () => {
        "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)"
    };
}

/// How long a fence is kept without use: 30 days, in ms.
macro_rules! unused {
    () => {
        "2592000000"
    };
}

/// Sets `last` to the last number of the fence `fence`, false for none. Ends the script with an error where a foreign value is
/// there: what is no integer, or too great to be counted on.
macro_rules! last_number {
    () => {
        concat!(
            "
local last = redis.call('GET', fence)
if last and last ~= '0' and not (string.find(last, '^[1-9]%d*$') and tonumber(last) < ",
            most!(),
            ") then
  return redis.error_reply('WRONGTYPE the fence counter is no number')
end"
        )
    };
}

/// Sets `number` to the next one of the fence `fence` (rule S12), after `last`. An absent fence begins at the server's time in
/// µs: above all that it gave out before it lost its data. An integer below 2^53 is exact in Lua, and passed on without `..` or
/// `tostring`, which would round it.
macro_rules! next_number {
    () => {
        concat!(
            "
if not last then
  local time = redis.call('TIME')
  redis.call('SET', fence, time[1] * 1000000 + time[2])
end
number = redis.call('INCR', fence)
redis.call('PEXPIRE', fence, ",
            unused!(),
            ")"
        )
    };
}

/// Gives the readers a turn of `interval` ms, if a refused one has left its mark in `turn`. Zero is no turn. Where we may not
/// write it, there is none.
macro_rules! give_turn {
    () => {
        "
if interval ~= '0' and redis.pcall('GET', turn) == 'asked' then redis.pcall('SET', turn, 'given', 'PX', interval) end"
    };
}

/// Lets `set`, which was to end in `left` ms before it was written to, end a second after an entry that ends in `life` ms,
/// unless it ends later anyway. One without an end stays so: a foreign entry in it may have none.
macro_rules! keep {
    () => {
        "
if left ~= -1 and left < life + 1000 then redis.call('PEXPIRE', set, life + 1000) end"
    };
}

/// Sweeps entries that have ended out of the sorted set `set`, and sets `left` to when it is to end.
macro_rules! sweep {
    () => {
        "
redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)
local left = redis.call('PTTL', set)"
    };
}

/// Enters `member` into the sorted set `set`, to end in `life` ms. The sweep before it takes no memory, so that a server which
/// has none refuses neither.
macro_rules! enter {
    () => {
        concat!(
            sweep!(),
            "
redis.call('ZADD', set, now + life, member)",
            keep!()
        )
    };
}

/// Take read locks, for any number of readers that come together (rule S10).
///
/// 1. Refused while there is a writer.
/// 2. Refused while a place at the gate is alive, unless the readers have their turn, or the gate is not heeded.
/// 3. Who is refused and waits leaves a mark, unless the readers have their turn already, or a foreign value is there. A server
///    that has no memory for it refuses all the same.
/// 4. Otherwise: readers that have ended are swept out, and the tokens are entered.
///
/// KEYS: writer, readers, gate, turn. ARGV: TTL in ms, how long a mark stays in ms or 0 for none, 1 if the gate is heeded,
/// tokens. Reply: 1 granted to all, or who stands in the way of all (0 a writer, 2 the gate) and for how many ms (−1
/// without an end).
const ACQUIRE_READ: &str = concat!(
    "local some = redis.call('EXISTS', KEYS[1], KEYS[3]) > 0
local writer = some and redis.call('GET', KEYS[1])",
    now!(),
    "
local refused
if writer then
  refused = {0, redis.call('PTTL', KEYS[1])}
elseif some and ARGV[3] == '1' then
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) >= now and redis.call('GET', KEYS[4]) ~= 'given' then refused = {2, last - now} end
end
if refused then
  local turn = ARGV[2] ~= '0' and redis.call('GET', KEYS[4])
  if ARGV[2] ~= '0' and (not turn or turn == 'asked') then
    redis.pcall('SET', KEYS[4], 'asked', 'PX', ARGV[2])
  end",
    bound!(),
    "
  return refused
end
local set, life = KEYS[2], tonumber(ARGV[1])",
    sweep!(),
    "
local entries = {}
for i = 4, #ARGV do
  entries[2 * i - 7], entries[2 * i - 6] = now + life, ARGV[i]
end
redis.call('ZADD', set, unpack(entries))",
    keep!(),
    "
return 1"
);

/// Take the write lock (rule S10).
///
/// 1. Refused while there is a writer, or a reader that has not ended.
/// 2. Refused while the readers have their turn, unless that is not heeded.
/// 3. Who is refused and waits takes its place at the gate, or keeps it for longer.
/// 4. Otherwise readers that have ended are swept out, and the token is stored with its TTL. A gate keeps no writer out; a
///    place of its own is left later.
///
/// KEYS: writer, readers, gate, turn. ARGV: token, TTL in ms, how long a place at the gate stays in ms or 0 for none,
/// 1 if a turn is heeded, the place's token. Reply: 1 granted, or who stands in the way (0 a writer, 1 readers, 3 their turn)
/// and for how many ms (−1 without an end). A fifth key is the lock's fence: then a grant's reply is the next number of it.
const ACQUIRE_WRITE: &str = concat!(
    "
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[4]) > 0 then
local writer = redis.call('GET', KEYS[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]",
    now!(),
    "
local refused
if writer then
  refused = {0, redis.call('PTTL', KEYS[1])}
elseif last and tonumber(last) >= now then
  refused = {1, last - now}
elseif ARGV[4] == '1' and redis.call('GET', KEYS[4]) == 'given' then
  refused = {3, redis.call('PTTL', KEYS[4])}
end
if refused then
  if ARGV[3] ~= '0' then
    local set, member, life = KEYS[3], ARGV[5], tonumber(ARGV[3])",
    enter!(),
    "
  end",
    bound!(),
    "
  return refused
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 1)
end
local fence, number = KEYS[5], 1
if fence then",
    last_number!(),
    next_number!(),
    "
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return number"
);

/// Extend a read lock (rule S5): never kills, never revives, never shortens.
///
/// 1. A reader that has ended is not revived.
/// 2. The token in the writer's place is what a downgrade left that did not come here: it becomes a reader's, for no less.
/// 3. The end becomes the later of what it is and the TTL from now.
///
/// KEYS: writer, readers. ARGV: token, TTL in ms. Reply: 1 ours and extended, 0 not here.
const EXTEND_READ: &str = concat!(
    "local score = redis.call('ZSCORE', KEYS[2], ARGV[1])",
    now!(),
    "
local set, member, life = KEYS[2], ARGV[1], tonumber(ARGV[2])
local is_writer = not score or tonumber(score) < now
if is_writer then
  if redis.call('GET', KEYS[1]) ~= member then return 0 end
  score, life = now, math.max(life, math.min(redis.call('PTTL', KEYS[1]), ",
    most!(),
    "))
end
if tonumber(score) < now + life then",
    enter!(),
    "
end
if is_writer then redis.call('DEL', KEYS[1]) end
return 1"
);

/// Release read locks, of any number of readers that leave together.
///
/// 1. The tokens are taken out; the set then ends a second after the last of those that are left.
/// 2. One may be in the writer's place, where a downgrade did not come: then it is deleted there, and waiting readers get the
///    turn that the downgrade would have given them. A foreign value there is nobody's token, and keeps no other from its end.
/// 3. If something was taken out and no reader is left, that is published.
///
/// KEYS: writer, readers, turn. ARGV: where to publish it or nothing, how long a turn is in ms or 0 for none, tokens. Reply: one
/// more than who heard of it if all are released; otherwise for each token 1, or 0 when it was not here or had ended before.
const RELEASE_READ: &str = concat!(
    "local channel, interval, turn = table.remove(ARGV, 1), table.remove(ARGV, 1), KEYS[3]
local scores = redis.call('ZMSCORE', KEYS[2], unpack(ARGV))",
    now!(),
    "
local ended, all, found, freed = {}, true, 0, false
for i, score in ipairs(scores) do
  if score then
    score = tonumber(score)
    if score > found then found = score end
    ended[i] = score >= now and 1 or 0
  else
    local writer = redis.pcall('GET', KEYS[1])
    if type(writer) == 'table' and not string.find(writer.err, 'WRONGTYPE', 1, true) then return writer end
    ended[i] = 0
    if writer == ARGV[i] then
      ended[i] = redis.call('DEL', KEYS[1])
      freed = true",
    give_turn!(),
    "
    end
  end
  all = all and ended[i] == 1
end
if found > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV))
  freed = true
end
local last = freed and redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if last and tonumber(last) < found then
  redis.call('PEXPIREAT', KEYS[2], math.min(math.ceil(last) + 1000, ",
    most!(),
    "))
end
if not freed or last and tonumber(last) >= now then channel = '' end",
    publish!(),
    "
return all and heard or ended"
);

/// Release the write lock: compare and delete. If a refused reader waits, the readers get a turn.
///
/// KEYS: writer, turn. ARGV: token, how long a turn is in ms, or 0 for none, where to publish it or nothing. Reply: 0 no such
/// key; −1 another's, left untouched; else it was deleted, and the reply is one more than who heard of it.
const RELEASE_WRITE: &str = concat!(
    "local writer, turn, interval, channel = redis.call('GET', KEYS[1]), KEYS[2], ARGV[2], ARGV[3]
if writer ~= ARGV[1] then return writer and -1 or 0 end
redis.call('DEL', KEYS[1])",
    give_turn!(),
    publish!(),
    "
return heard"
);

/// Turn a write lock into a read lock with the same token and the same end, and give waiting readers a turn.
///
/// 1. Nothing is changed unless the token is the writer's. Where it is a reader's already, this has been here before.
/// 2. A writer's key that somebody made persistent gets the end that our lease has.
///
/// KEYS: writer, readers, turn. ARGV: token, what the lease has left in ms, how long a turn is in ms, where to publish it or
/// nothing. Reply: 0 no such key; −1 another's; else ours, and a reader now, and the reply is one more than who heard of it.
const DOWNGRADE: &str = concat!(
    "local writer = redis.call('GET', KEYS[1])
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])",
    now!(),
    "
if writer ~= ARGV[1] then
  if score and tonumber(score) >= now then return 1 end
  return writer and -1 or 0
end
local set, member, life = KEYS[2], ARGV[1], redis.call('PTTL', KEYS[1])
if life < 0 then life = tonumber(ARGV[2]) end
life = math.min(life, ",
    most!(),
    ")",
    enter!(),
    "
redis.call('DEL', KEYS[1])
local turn, interval, channel = KEYS[3], ARGV[3], ARGV[4]",
    give_turn!(),
    publish!(),
    "
return heard"
);

/// Sets `known` to the last numbers of all fences behind the locks. Ends the script where one of them is foreign.
macro_rules! last_numbers {
    () => {
        concat!(
            "
local known = {}
for i = locks + 1, #KEYS do
  local fence = KEYS[i]",
            last_number!(),
            "
  known[i] = last
end"
        )
    };
}

/// Sets `highest` to the next number of the fence that is highest, to which all fences behind the locks are raised; to 1 where
/// there is none. The last ones are `known`.
macro_rules! number_all {
    () => {
        concat!(
            "
local number, highest = 1, 1
for i = locks + 1, #KEYS do
  local fence, last = KEYS[i], known[i]",
            next_number!(),
            "
  if number > highest then highest = number end
end
if locks > 1 then
  for i = locks + 1, #KEYS do redis.call('SET', KEYS[i], highest, 'PX', ",
            unused!(),
            ") end
end"
        )
    };
}

/// Take the lock, where it has several keys or is to have a number that is greater than all before (rule S12).
///
/// 1. Refused while another's value is in one of the keys. Our own token is none: a lock is put back where a part of it was
///    lost.
/// 2. What can fail on its type comes first, then the fences, then the locks. The number is the next one of the fence that
///    is highest, and all of them are raised to it.
/// 3. An end that is later than the TTL stays.
///
/// KEYS: the locks that are held as one, and their fences if it is to have a number. ARGV: token, TTL in ms, how many locks
/// there are. Reply: the number, or 1; or which lock stands in the way for the longest, from 0 on, and for how many ms (−1
/// without an end).
const ACQUIRE: &str = concat!(
    "local locks, ttl, refused = tonumber(ARGV[3]), tonumber(ARGV[2])
for i = 1, locks do
  local value = redis.call('GET', KEYS[i])
  if value and value ~= ARGV[1] then
    local left = redis.call('PTTL', KEYS[i])
    if not refused or left < 0 or refused[2] >= 0 and left > refused[2] then refused = {i - 1, left} end
  end
end
if refused then",
    bound!(),
    "
  return refused
end",
    last_numbers!(),
    number_all!(),
    "
for i = 1, locks do
  if redis.call('PTTL', KEYS[i]) < ttl then redis.call('SET', KEYS[i], ARGV[1], 'PX', ttl) end
end
return highest"
);

/// Adopt a lock that was handed over: compare and set.
///
/// 1. Nothing is changed unless each value is the token that was handed over.
/// 2. What can fail on its type comes first. Then our TTL, which takes no memory: a lock changes hands on a server that has none.
/// 3. Then the fences, as for a take; then our token takes its place, with our TTL.
///
/// KEYS: the locks that are held as one, and their fences if it is to have a number. ARGV: the former token, ours, TTL in ms,
/// how many locks there are. Reply: the number, or 1; 0 one of the locks is not there; −1 one of them is another's.
const ADOPT: &str = concat!(
    "local locks = tonumber(ARGV[4])",
    ours!(),
    last_numbers!(),
    "
for i = 1, locks do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end",
    number_all!(),
    "
for i = 1, locks do redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[3]) end
return highest"
);

/// Swap the token of a lock with one key: the release of one thread and the take of the next.
///
/// 1. Nothing is changed where another's value is.
/// 2. What can fail on its type comes first. Then our TTL for the former token, if it is there, as for an adoption.
/// 3. Then the fence, as for a take; then our token takes the place of the former one, or of none, with our TTL.
///
/// KEYS: the lock, and its fence if it is to have a number. ARGV: the former token, ours, TTL in ms. Reply: 0 another's value is
/// there; else the number, or 1: below zero where there was no value.
const SWAP: &str = concat!(
    "local former = redis.call('GET', KEYS[1])
if former and former ~= ARGV[1] then return 0 end
local fence, known, number = KEYS[2], false, 1
if fence then",
    last_number!(),
    "
  known = last
end
if former then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
if fence then
  local last = known",
    next_number!(),
    "
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return former and number or -number"
);

/// Raise the fences of a lock that is ours: by the next holder's number they must have been as high as ours on a quorum.
///
/// KEYS: the locks that are held as one, or the writer; the fence of each. ARGV: token, the number. Reply: 1 ours, and the
/// fences are as high; 0 one of the locks is not there; −1 one of them is another's.
const RAISE_FENCE: &str = concat!(
    "local locks = #KEYS / 2",
    ours!(),
    last_numbers!(),
    "
for i = locks + 1, #KEYS do
  local last = known[i]
  if not last or tonumber(last) < tonumber(ARGV[2]) then redis.call('SET', KEYS[i], ARGV[2], 'PX', ",
    unused!(),
    ") end
end
return 1"
);

/// Tell who holds an exclusive lock, without its token: who knows that can release the lock.
///
/// 1. A value of another type has no digest and no owner. It stands in the way of the lock all the same.
/// 2. Of an owner no more is told than can be shown: anybody may have written a long one.
///
/// KEYS: the lock. Reply: 0 no such key; else a digest of the value, what is before its last `:`, and for how many ms (−1 without
/// an end).
const INSPECT: &str = "\
local value, digest, owner = redis.pcall('GET', KEYS[1]), '', ''
if not value then return 0 end
if type(value) == 'string' then
  digest, owner = redis.sha1hex(value), string.match(value, '^(.*):') or ''
elseif not string.find(value.err, 'WRONGTYPE', 1, true) then
  return value
end
return {digest, string.sub(owner, 1, 256), redis.call('PTTL', KEYS[1])}";

/// Delete an exclusive lock whoever holds it, as an operator says.
///
/// 1. A value of another type is no lock, and fails the first step.
///
/// KEYS: the lock. ARGV: where to publish it. Reply: 0 no such key; else it was deleted, and the reply is one more than who
/// heard of it.
const FORCE_RELEASE: &str = concat!(
    "local channel = ARGV[1]
if not redis.call('GET', KEYS[1]) then return 0 end
redis.call('DEL', KEYS[1])",
    publish!(),
    "
return heard"
);

// Where the macros above are known to it.
mod permits;

/// All scripts, in the order of [`Script`].
pub(crate) const SCRIPTS: [&str; 18] = [
    EXTEND,
    RELEASE,
    RELEASE_ALL,
    ACQUIRE_READ,
    ACQUIRE_WRITE,
    EXTEND_READ,
    RELEASE_READ,
    RELEASE_WRITE,
    DOWNGRADE,
    ACQUIRE,
    RAISE_FENCE,
    INSPECT,
    FORCE_RELEASE,
    ADOPT,
    SWAP,
    ACQUIRE_PERMIT,
    EXTEND_PERMIT,
    RELEASE_PERMIT,
];

/// Those that end what another may take right after: loaded at once, so that none has to be sent again behind that one.
pub(crate) const PRELOADED: [Script; 7] = [
    Script::Release,
    Script::ReleaseAll,
    Script::ReleaseRead,
    Script::ReleaseWrite,
    Script::ReleasePermit,
    Script::Downgrade,
    Script::Swap,
];

/// Where a script is in [`SCRIPTS`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    Extend,
    Release,
    ReleaseAll,
    Read,
    Write,
    ExtendRead,
    ReleaseRead,
    ReleaseWrite,
    Downgrade,
    Take,
    Raise,
    Tell,
    Break,
    Adopt,
    Swap,
    Permit,
    ExtendPermit,
    ReleasePermit,
}
