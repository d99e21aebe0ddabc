-- Acquires an exclusive lock of several keys, or a fenced one (S12). One key without a fence is
-- acquired by SET NX PX.
--
-- 1. Refused while a lock holds another value. Our own token does not refuse: a restore finds it
--    in the keys that were not lost.
-- 2. Everything that can fail on its type comes first, then the fence counters, then the locks.
-- 3. An expiry that is later than the TTL stays.
--
-- KEYS: the locks of the lease; the fence counter of each for a fenced lock. ARGV: token, TTL in
-- ms, number of locks.
-- Reply: 1 granted, of a fenced lock the highest counter; or {index from 0, ms left, owner label} of
-- the lock that is held for the longest, with -1 ms for no end. The label is the part before the
-- last ':', at most 256 bytes of it.
-- Prelude: fence.
local locks, ttl, refusal = tonumber(ARGV[3]), tonumber(ARGV[2])
for i = 1, locks do
  local value = redis.call('GET', KEYS[i])
  if value and value ~= ARGV[1] then
    local left = redis.call('PTTL', KEYS[i])
    if not refusal or left < 0 or refusal[2] >= 0 and left > refusal[2] then
      refusal = {i - 1, left, string.sub(string.match(value, '^(.*):') or '', 1, 256)}
    end
  end
end
if refusal then
  -- A foreign value may be beyond 2^53, above which no integer is exact in Lua.
  if refusal[2] > 9007199254740991 then refusal[2] = -1 end
  return refusal
end
local counters, foreign = read_fences(locks)
if foreign then return foreign end
local highest = count_fences(locks, counters)
for i = 1, locks do
  if redis.call('PTTL', KEYS[i]) < ttl then redis.call('SET', KEYS[i], ARGV[1], 'PX', ttl) end
end
return highest
