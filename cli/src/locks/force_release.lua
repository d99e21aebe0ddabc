-- Removes holders of one name whose tokens have the given digests, and nothing else.
--
-- 1. A reader set or a semaphore that becomes empty goes with its last entry.
-- 2. A removed writer leaves a reader turn to a reader that waits, as its release would.
-- 3. PUBLISH wakes waiters, also where this node had no holder: waiters may listen here. It comes
--    last, by `pcall`, because the right may be missing.
--
-- KEYS: the lock, writer, readers, gate, permits, turn; or the lock alone. ARGV: SHA-1 digests, if any.
-- Reply: the number of removed holders.
local wanted, removed = {}, 0
for _, digest in ipairs(ARGV) do wanted[digest] = true end
local function is_wanted(token) return wanted[redis.sha1hex(token)] end
local function remove_string(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' and is_wanted(value) then
    removed = removed + redis.call('DEL', key)
    return true
  end
  -- A value of another type has no token. Its digest is empty.
  if type(value) == 'table' and wanted[''] and string.find(value.err, 'WRONGTYPE', 1, true) then
    removed = removed + redis.call('DEL', key)
  end
end
remove_string(KEYS[1])
if #KEYS > 1 then
  if remove_string(KEYS[2]) and redis.pcall('GET', KEYS[6]) == 'asked' then
    redis.pcall('SET', KEYS[6], 'given', 'PX', 100)
  end
  local readers = redis.pcall('ZRANGE', KEYS[3], 0, -1)
  for _, token in ipairs(readers) do
    if is_wanted(token) then removed = removed + redis.call('ZREM', KEYS[3], token) end
  end
  local permits = redis.pcall('HGETALL', KEYS[5])
  for i = 1, #permits, 2 do
    local token = string.match(permits[i + 1], '^%d+ (.*)$')
    if token and is_wanted(token) then removed = removed + redis.call('HDEL', KEYS[5], permits[i]) end
  end
  if #permits > 0 and redis.call('HLEN', KEYS[5]) == 1 then redis.call('HDEL', KEYS[5], 'permits') end
end
redis.pcall('PUBLISH', KEYS[1], '')
return removed
