-- Takes a place in the waiting list of an exclusive lock, or tells the one that a process has. The
-- list is a hint: it decides which process is woken first, and never which one acquires (L4).
--
-- 1. If this is a check and the lock is free, the process loses its place and is told that the lock
--    is free. A process that comes near by that is told its place. A request that is no check needs
--    no such message: until it has the place, each release wakes its caller, or a check follows.
-- 2. Otherwise its wake channel is added to the list, scored by when its caller began to wait, by
--    the time of this server. A place that it has already stays.
-- 3. It is told in its wake channel how many are before it. So this message and those of releases
--    have one order. The place is taken back if the process does not listen on this server.
--
-- KEYS: the lock, its waiting list. ARGV: wake channel, ms that the caller has waited, 1 for a
-- check.
-- Reply: 1 with a place, 0 without.
-- `near` is the number of processes that listen to the lock's channel. Prelude: near.
local lock, list, channel = KEYS[1], KEYS[2], ARGV[1]
if ARGV[3] == '1' and redis.call('EXISTS', lock) == 0 then
  if redis.call('ZREM', list, channel) == 1 then tell_last_near(list, lock) end
  redis.call('PUBLISH', channel, 'free ' .. lock)
  return 0
end
local time = redis.call('TIME')
redis.call('ZADD', list, 'NX', time[1] * 1000000 + time[2] - ARGV[2] * 1000, channel)
redis.call('PEXPIRE', list, 60000)
local before = redis.call('ZRANK', list, channel)
if redis.call('PUBLISH', channel, 'place ' .. before .. ' ' .. lock) == 0 then
  redis.call('ZREM', list, channel)
  return 0
end
return 1
