-- Acquires one permit of a semaphore: a Redlock of its own, so that quorums never grant more
-- permits than there are.
--
-- 1. Refused if the semaphore has another number of permits and one of them is held. If none is
--    held, the number becomes ours.
-- 2. Refused while another owner holds this permit. The reply lists the free ones, so that the next
--    request names one of them.
-- 3. Otherwise the token is stored with its expiry, not earlier than the one that our token has. The
--    expired permits of another number are removed only then: a server without memory refuses the
--    token only because it is the first write.
-- 4. A hash that no semaphore wrote is left untouched: one without a number of permits, or with
--    more fields than permits are possible.
--
-- KEYS: permits. ARGV: token, TTL in ms, index of the permit, number of permits.
-- Reply: 1 granted; or {-1, number of permits here}; or {ms until the next permit expires, a bit
-- for each free permit, 32 per integer, lowest first}.
-- Prelude: permit.
local permits, held = unpack(redis.call('HMGET', KEYS[1], 'permits', ARGV[3]))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires_at, owner = parse_permit(held, now)
local differs = permits and permits ~= ARGV[4]
if not permits or differs or owner and owner ~= ARGV[1] then
  local fields = redis.call('HLEN', KEYS[1])
  local count = permits and string.find(permits, '^[1-9]%d*$') and tonumber(permits) or 0
  if fields > 0 and (fields > 1025 or count < 1 or count > 1024) then
    return redis.error_reply('WRONGTYPE these are no permits')
  end
end
local all = {}
if differs or owner and owner ~= ARGV[1] then
  local taken, next = {}, false
  all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local expiry = parse_permit(all[i] ~= 'permits' and all[i + 1], now)
    if expiry then
      taken[all[i]] = true
      if not next or expiry < next then next = expiry end
    end
  end
  if differs and next then return {-1, tonumber(permits)} end
  if not differs then
    local reply = {next - now}
    for index = 0, ARGV[4] - 1 do
      local word = math.floor(index / 32) + 2
      reply[word] = (reply[word] or 0) + (taken[tostring(index)] and 0 or 2 ^ (index % 32))
    end
    return reply
  end
end
expires_at = math.max(expires_at or 0, now + ARGV[2])
local left, value = redis.call('PTTL', KEYS[1]), string.format('%.0f %s', expires_at, ARGV[1])
redis.call('HSET', KEYS[1], 'permits', ARGV[4], ARGV[3], value)
for i = 1, #all, 2 do
  if all[i] ~= 'permits' and all[i] ~= ARGV[3] then redis.call('HDEL', KEYS[1], all[i]) end
end
if differs then left = -2 end
extend_hash_ttl(left, expires_at, now)
return 1
