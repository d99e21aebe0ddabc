-- Acquires read locks, for any number of readers that share one call (S10).
--
-- 1. Refused while there is a writer.
-- 2. Refused while a gate entry is alive, unless a reader turn is on or the gate is not heeded.
-- 3. A refused reader that waits sets the reader marker, unless a turn is on or a foreign value is
--    there. A server without memory for the marker refuses all the same.
-- 4. Otherwise the tokens are added and expired readers are removed. A server without memory refuses
--    the addition only because it is the first write.
--
-- KEYS: writer, readers, gate, turn. ARGV: TTL in ms, TTL of the marker in ms or 0 for none, 1 if
-- the gate is heeded, tokens.
-- Reply: 1 granted to all; or {blocker, ms left} for all, with blocker 0 writer or 2 gate, and
-- -1 ms for no end. A writer's owner label follows: the part before the last ':'.
local any = redis.call('EXISTS', KEYS[1], KEYS[3]) > 0
local writer = any and redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local refusal
if writer then
  local label = string.sub(string.match(writer, '^(.*):') or '', 1, 256)
  refusal = {0, redis.call('PTTL', KEYS[1]), label}
elseif any and ARGV[3] == '1' then
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) >= now and redis.call('GET', KEYS[4]) ~= 'given' then
    refusal = {2, last - now}
  end
end
if refusal then
  local turn = ARGV[2] ~= '0' and redis.call('GET', KEYS[4])
  if ARGV[2] ~= '0' and (not turn or turn == 'asked') then
    redis.pcall('SET', KEYS[4], 'asked', 'PX', ARGV[2])
  end
  -- A foreign value may be beyond 2^53, above which no integer is exact in Lua.
  if refusal[2] > 9007199254740991 then refusal[2] = -1 end
  return refusal
end
local set, ttl = KEYS[2], tonumber(ARGV[1])
-- The server formats each number that it is given with 17 digits. Once per token this would take a
-- tenth of the call for 16 readers, so the expiry is formatted here.
local expires_at = string.format('%d', now + ttl)
local left = redis.call('PTTL', set)
local entries = {}
for i = 4, #ARGV do
  entries[2 * i - 7], entries[2 * i - 6] = expires_at, ARGV[i]
end
redis.call('ZADD', set, unpack(entries))
-- A set that was absent has no expired readers.
if left ~= -2 then redis.call('ZREMRANGEBYSCORE', set, '-inf', string.format('(%d', now)) end
-- The set ends a second after its last entry. A set without an expiry keeps none while it holds a
-- foreign entry.
local count = #ARGV - 3
if left == -1 and #redis.call('ZRANGE', set, 0, count) == count then left = -2 end
if left ~= -1 and left < ttl + 1000 then redis.call('PEXPIRE', set, ttl + 1000) end
return 1
