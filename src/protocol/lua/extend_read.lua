-- Extends a read lock (S5). Deletes no lock, restores none, and makes no expiry earlier.
--
-- 1. An expired reader is not revived.
-- 2. If a downgrade did not arrive, the token is still stored under the writer's key. It becomes a
--    reader's, with no earlier expiry.
-- 3. The expiry becomes the later of the present one and the TTL from now.
--
-- KEYS: writer, readers. ARGV: token, TTL in ms. Reply: 1 extended; 0 absent.
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local set, ttl = KEYS[2], tonumber(ARGV[2])
local is_writer = not score or tonumber(score) < now
if is_writer then
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
  -- Above 2^53 no integer is exact in Lua.
  score, ttl = now, math.max(ttl, math.min(redis.call('PTTL', KEYS[1]), 9007199254740991))
end
if tonumber(score) < now + ttl then
  -- The removal needs no memory, so a server without memory refuses neither command.
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)
  local left = redis.call('PTTL', set)
  redis.call('ZADD', set, now + ttl, ARGV[1])
  if left ~= -1 and left < ttl + 1000 then redis.call('PEXPIRE', set, ttl + 1000) end
end
-- Only now, because a right may be missing for the commands above.
if is_writer then redis.call('DEL', KEYS[1]) end
return 1
