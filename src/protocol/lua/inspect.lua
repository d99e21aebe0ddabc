-- Inspects an exclusive lock: reports its holder without the token, since a token can release the
-- lock.
--
-- 1. A value of another type has no digest and no owner label. It blocks the lock all the same.
-- 2. The time of the acquire is at most 16 digits, behind 40 random ones and a dot.
-- 3. At most 256 bytes of an owner label are reported: a foreign client may have written any.
--
-- KEYS: the lock.
-- Reply: 0 absent; else {SHA-1 of the value, the part before its last ':', ms left, since}, with
-- -1 ms for no end. `since` is the time of the acquire in hexadecimal ms since 1970, or ''.
local value, digest, owner, since = redis.pcall('GET', KEYS[1]), '', '', ''
if not value then return 0 end
if type(value) == 'string' then
  digest, owner = redis.sha1hex(value), string.match(value, '^(.*):') or ''
  -- Only the end is searched: a search through a long foreign value would block the server.
  since = string.match(string.sub(value, -57), string.rep('%x', 40) .. '%.(%x+)$') or ''
elseif not string.find(value.err, 'WRONGTYPE', 1, true) then
  return value
end
return {digest, string.sub(owner, 1, 256), redis.call('PTTL', KEYS[1]), since}
