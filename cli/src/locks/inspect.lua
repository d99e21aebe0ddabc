-- Reports the holders of all kinds of locks of one name, without their tokens, since a token can
-- release the lock.
--
-- 1. A key of another type is reported as a lock without a digest if it is the exclusive lock's own,
--    and else left out.
-- 2. At most 256 bytes of an owner label are reported: a foreign client may have written any.
-- 3. At most 1000 readers are reported.
-- 4. The time of the acquire stands behind the token's 40 digits, in hexadecimal ms since 1970.
--
-- 5. The processes of the waiting list are counted: those far behind may not be subscribed to the
--    lock's channel.
--
-- KEYS: the lock; and, unless they are denied, writer, readers, gate, permits, waiting list.
-- Reply: a list of {kind, SHA-1 of the token, the part before its last ':', ms left, number of the
-- permit, number of permits, time of the acquire or ''}, with -1 ms for no end. Kinds: lock, write, read, permit, gate for a
-- writer that waits, and list, with the count of processes in place of the ms.
local report, time = {}, redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function bounded(ms) return ms > 9007199254740991 and -1 or ms end
local function add(kind, token, ms, number, total)
  local owner = string.match(token, '^(.*):') or ''
  local since = string.match(token, string.rep('%x', 40) .. '%.(%x+)$') or ''
  report[#report + 1] = {
    kind, redis.sha1hex(token), string.sub(owner, 1, 256), ms, number or -1, total or -1, string.sub(since, 1, 12)
  }
end
local function add_string(kind, key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' then
    add(kind, value, redis.call('PTTL', key))
  elseif value and kind == 'lock' and string.find(value.err, 'WRONGTYPE', 1, true) then
    report[#report + 1] = {kind, '', '', redis.call('PTTL', key), -1, -1, ''}
  end
end
local function add_set(kind, key)
  local entries = redis.pcall('ZRANGE', key, -1000, -1, 'WITHSCORES')
  if entries.err then return end
  for i = 1, #entries, 2 do
    local left = tonumber(entries[i + 1]) - now
    if left >= 0 then add(kind, entries[i], bounded(left)) end
  end
end
add_string('lock', KEYS[1])
if #KEYS > 1 then
  add_string('write', KEYS[2])
  add_set('read', KEYS[3])
  add_set('gate', KEYS[4])
  local permits = redis.pcall('HGETALL', KEYS[5])
  local total = -1
  for i = 1, #permits, 2 do
    if permits[i] == 'permits' then total = tonumber(permits[i + 1]) or -1 end
  end
  for i = 1, #permits, 2 do
    local expiry, token = string.match(permits[i + 1], '^(%d+) (.*)$')
    local number = tonumber(permits[i])
    if expiry and number and tonumber(expiry) >= now then
      add('permit', token, bounded(tonumber(expiry) - now), number, total)
    end
  end
  local list = redis.pcall('ZRANGE', KEYS[6], 0, -1)
  if #list > 0 then report[#report + 1] = {'list', '', '', #list, -1, -1, ''} end
end
return report
