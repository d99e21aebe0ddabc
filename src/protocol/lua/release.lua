-- Releases an exclusive lock of one key: compare and delete (S3). Most locks of
-- one key are released by this script, so it does no more than it must.
--
-- 1. Another value is left untouched.
-- 2. The release is published, also where the node has no key of ours: waiters may listen there. The
--    first process of the waiting list is woken. With 0, both happen only if this call deleted the
--    key.
--
-- KEYS: the lock. ARGV: token; empty if the release is not to be published, 0 if only a deletion is,
-- else 2 if the acquire had a subscription, and 1 if it had none.
-- Reply: 0 absent; -1 another value; else deleted, and one more than the number of receivers. If a
-- process of the waiting list was woken, that number is negative, and -2 at most.
-- Source: Redlock, "Correct implementation with a single instance".
-- Tail: publish_next.
local key = KEYS[1]
local value, reply = redis.call('GET', key), 1
if value == ARGV[1] then redis.call('DEL', key) else reply = value and -1 or 0 end
if ARGV[2] == '' or reply ~= 1 and ARGV[2] == '0' then return reply end
