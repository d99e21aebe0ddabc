-- Extends an exclusive or a write lock (S5). Deletes no lock, restores none, and makes no expiry
-- earlier.
--
-- 1. Nothing changes unless each value is our token.
-- 2. The expiry of each key becomes the greater of what is left and the TTL. A key without an
--    expiry gets one.
--
-- KEYS: the locks of the lease. ARGV: token, TTL in ms.
-- Reply: 1 extended; 0 a lock is absent; -1 a lock has another value.
-- Source: Redlock, "Making the algorithm more reliable: Extending the lock".
local ttl, absent = tonumber(ARGV[2]), false
for i = 1, #KEYS do
  local value = redis.call('GET', KEYS[i])
  if value ~= ARGV[1] then
    if value then return -1 end
    absent = true
  end
end
if absent then return 0 end
for i = 1, #KEYS do
  if redis.call('PTTL', KEYS[i]) < ttl then redis.call('PEXPIRE', KEYS[i], ttl) end
end
return 1
