-- Acquires a write lock (S10).
--
-- 1. Refused while there is a writer or a reader that has not expired.
-- 2. Refused during a reader turn, unless turns are not heeded.
-- 3. A refused writer that waits raises or refreshes its gate entry.
-- 4. Otherwise the token is stored with its TTL and expired readers are removed. A server without
--    memory refuses the token only because it, or the fence counter, is the first write. A gate entry
--    refuses no writer. The writer's own entry stays until a request of its own releases it.
--
-- KEYS: writer, readers, gate, turn, and the fence counter for a fenced lock. ARGV: token, TTL in
-- ms, TTL of the gate entry in ms or 0 for none, 1 if turns are heeded, the gate entry's token.
-- Reply: 1 granted, of a fenced lock the incremented counter (S12); or {blocker, ms left}, with
-- blocker 0 writer, 1 readers or 3 reader turn, and -1 ms for no end. A writer's owner label
-- follows: the part before the last ':'.
local now
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[4]) > 0 then
  local writer = redis.call('GET', KEYS[1])
  local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  local refusal
  if writer then
    local label = string.sub(string.match(writer, '^(.*):') or '', 1, 256)
    refusal = {0, redis.call('PTTL', KEYS[1]), label}
  elseif last and tonumber(last) >= now then
    refusal = {1, last - now}
  elseif ARGV[4] == '1' and redis.call('GET', KEYS[4]) == 'given' then
    refusal = {3, redis.call('PTTL', KEYS[4])}
  end
  if refusal then
    if ARGV[3] ~= '0' then
      local gate, ttl = KEYS[3], tonumber(ARGV[3])
      redis.call('ZREMRANGEBYSCORE', gate, '-inf', now - 1)
      local left = redis.call('PTTL', gate)
      redis.call('ZADD', gate, now + ttl, ARGV[5])
      if left ~= -1 and left < ttl + 1000 then redis.call('PEXPIRE', gate, ttl + 1000) end
    end
    -- A foreign value may be beyond 2^53, above which no integer is exact in Lua.
    if refusal[2] > 9007199254740991 then refusal[2] = -1 end
    return refusal
  end
end
-- As in prelude/fence.lua, but inline, because Lua creates a prelude function at every call, fenced
-- or not.
local fence, counter = KEYS[5], 1
if fence then
  local last = redis.call('GET', fence)
  if last and last ~= '0'
    and not (string.find(last, '^[1-9]%d*$') and tonumber(last) < 9007199254740991) then
    return redis.error_reply('WRONGTYPE the fence counter is no number')
  end
  if not last then
    local time = redis.call('TIME')
    redis.call('SET', fence, time[1] * 1000000 + time[2])
  end
  counter = redis.call('INCR', fence)
  redis.call('PEXPIRE', fence, 2592000000)
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if now then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 1) end
return counter
