-- Extends a permit (S5). Deletes no permit, restores none, and makes no expiry earlier.
--
-- 1. Nothing is changed unless the permit holds our token.
-- 2. The first write is an HDEL of a field that never exists, since no field is named like a token:
--    a server without memory refuses a script whose first write needs memory. Deleting the permit
--    itself could lose it.
-- 3. The expiry becomes the later of the present one and the TTL from now.
--
-- KEYS: permits. ARGV: token, TTL in ms, index of the permit.
-- Reply: 1 extended; 0 free; -1 another owner's.
-- Prelude: permit.
local held = redis.call('HGET', KEYS[1], ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires_at, owner = parse_permit(held, now)
if owner ~= ARGV[1] then return owner and -1 or 0 end
if expires_at < now + ARGV[2] then
  expires_at = now + ARGV[2]
  redis.call('HDEL', KEYS[1], ARGV[1])
  local left, value = redis.call('PTTL', KEYS[1]), string.format('%.0f %s', expires_at, ARGV[1])
  redis.call('HSET', KEYS[1], ARGV[3], value)
  extend_hash_ttl(left, expires_at, now)
end
return 1
