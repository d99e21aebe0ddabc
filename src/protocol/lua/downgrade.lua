-- Turns a write lock into a read lock with the same token and expiry. If a refused reader waits, a
-- reader turn starts.
--
-- 1. Nothing changes unless the writer has our token. A reader with our token means that this
--    script has run before. Without either the downgrade is published all the same: waiters may
--    listen there.
-- 2. A writer's key without an expiry gets the expiry of the lease.
--
-- KEYS: writer, readers, turn. ARGV: token, remaining time of the lease in ms, length of a reader
-- turn in ms or 0 for none, channel or '' for none.
-- Reply: 0 absent; -1 another value; else downgraded, and one more than the number of receivers.
-- Prelude: publish.
local writer = redis.call('GET', KEYS[1])
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if writer ~= ARGV[1] then
  if score and tonumber(score) >= now then return 1 end
  publish(ARGV[4])
  return writer and -1 or 0
end
local set, turn, interval, ttl = KEYS[2], KEYS[3], ARGV[3], redis.call('PTTL', KEYS[1])
if ttl < 0 then ttl = tonumber(ARGV[2]) end
-- Above 2^53 no integer is exact in Lua.
ttl = math.min(ttl, 9007199254740991)
-- The removal needs no memory, so a server without memory refuses neither command.
redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)
local left = redis.call('PTTL', set)
redis.call('ZADD', set, now + ttl, ARGV[1])
if left ~= -1 and left < ttl + 1000 then redis.call('PEXPIRE', set, ttl + 1000) end
redis.call('DEL', KEYS[1])
if interval ~= '0' and redis.pcall('GET', turn) == 'asked' then
  redis.pcall('SET', turn, 'given', 'PX', interval)
end
return publish(ARGV[4])
