-- Adopts a detached lock: compare and set.
--
-- 1. Nothing changes unless each value is the detached token.
-- 2. Everything that can fail on its type comes first. Then the TTL, which needs no memory: a lock
--    is adopted on a server without memory.
-- 3. Then the fence counters, then our token replaces the former one, with our TTL.
--
-- KEYS: the locks of the lease; the fence counter of each for a fenced lock. ARGV: former token,
-- our token, TTL in ms, number of locks.
-- Reply: 1 adopted, of a fenced lock the highest counter; 0 a lock is absent; -1 a lock has another
-- value.
-- Prelude: ownership, fence.
local locks = tonumber(ARGV[4])
local state = ownership(locks, ARGV[1])
if state ~= 1 then return state end
local counters, foreign = read_fences(locks)
if foreign then return foreign end
for i = 1, locks do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
local highest = count_fences(locks, counters)
for i = 1, locks do redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[3]) end
return highest
