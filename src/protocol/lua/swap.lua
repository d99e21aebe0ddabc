-- Swaps the token of an exclusive lock of one key: release by one thread and acquire by the next.
--
-- 1. Nothing changes where another value is.
-- 2. Everything that can fail on its type comes first. Then our TTL for the former token, if it is
--    there, as for an adoption.
-- 3. Then the fence counter; then our token replaces the former one, or none, with our TTL.
--
-- KEYS: the lock, and its fence counter for a fenced lock. ARGV: former token, our token, TTL in
-- ms.
-- Reply: 0 another value; else 1, of a fenced lock the incremented counter (S12); negative if the
-- lock was absent.
local former = redis.call('GET', KEYS[1])
if former and former ~= ARGV[1] then return 0 end
-- As in prelude/fence.lua, but inline: a handoff is the fastest way to acquire.
local fence, last, counter = KEYS[2], false, 1
if fence then
  last = redis.call('GET', fence)
  if last and last ~= '0'
    and not (string.find(last, '^[1-9]%d*$') and tonumber(last) < 9007199254740991) then
    return redis.error_reply('WRONGTYPE the fence counter is no number')
  end
end
if former then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
if fence then
  if not last then
    local time = redis.call('TIME')
    redis.call('SET', fence, time[1] * 1000000 + time[2])
  end
  counter = redis.call('INCR', fence)
  redis.call('PEXPIRE', fence, 2592000000)
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return former and counter or -counter
