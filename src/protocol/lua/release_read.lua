-- Releases read locks, of any number of readers that share one call.
--
-- 1. The tokens are removed. The set then ends a second after the last entry that is left.
-- 2. If a downgrade did not arrive, the token is still stored under the writer's key. It is deleted
--    there, and waiting readers get the turn that the downgrade would have started. A foreign value
--    there is no token, and does not keep the other readers from their release.
-- 3. If no reader is left, the release is published, also where nothing was removed: waiters may
--    listen there. With 1, it is published only if this call removed a token.
--
-- KEYS: writer, readers, turn. ARGV: channel or '' for none, 1 if only a removal is published, length
-- of a reader turn in ms or 0 for none, tokens.
-- Reply: one more than the number of receivers if all are released; otherwise per token 1, or 0 if
-- it was absent or expired.
local channel, conditional, interval, turn = ARGV[1], ARGV[2], ARGV[3], KEYS[3]
local scores = redis.call('ZMSCORE', KEYS[2], unpack(ARGV, 4))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local released, all, latest, removed = {}, true, 0, false
for i, score in ipairs(scores) do
  if score then
    score = tonumber(score)
    if score > latest then latest = score end
    released[i] = score >= now and 1 or 0
  else
    local writer = redis.pcall('GET', KEYS[1])
    if type(writer) == 'table' and not string.find(writer.err, 'WRONGTYPE', 1, true) then
      return writer
    end
    released[i] = 0
    if writer == ARGV[i + 3] then
      released[i] = redis.call('DEL', KEYS[1])
      removed = true
      if interval ~= '0' and redis.pcall('GET', turn) == 'asked' then
        redis.pcall('SET', turn, 'given', 'PX', interval)
      end
    end
  end
  all = all and released[i] == 1
end
if latest > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 4))
  removed = true
end
if conditional == '1' and not removed then channel = '' end
local last = (removed or channel ~= '') and redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if last and tonumber(last) < latest then
  -- Above 2^53 no integer is exact in Lua.
  redis.call('PEXPIREAT', KEYS[2], math.min(math.ceil(last) + 1000, 9007199254740991))
end
if last and tonumber(last) >= now then channel = '' end
local receivers = channel ~= '' and redis.pcall('PUBLISH', channel, '')
if not all then return released end
return type(receivers) == 'number' and receivers + 1 or 1
