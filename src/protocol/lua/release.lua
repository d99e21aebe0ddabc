-- Releases an exclusive lock of one key: compare and delete (S3). Every such lock ends by this
-- script, so it does no more than it must.
--
-- 1. Another value is left untouched.
-- 2. The release is published in the channel of the key's name, also where the node has no key of
--    ours: waiters may listen there.
--
-- KEYS: the lock. ARGV: token, 1 if the release is to be published.
-- Reply: 0 absent; -1 another value; else deleted, and one more than the number of receivers.
-- Source: Redlock, "Correct implementation with a single instance".
local key = KEYS[1]
local value = redis.call('GET', key)
if value ~= ARGV[1] then
  if ARGV[2] == '1' then redis.pcall('PUBLISH', key, '') end
  return value and -1 or 0
end
redis.call('DEL', key)
if ARGV[2] ~= '1' then return 1 end
local receivers = redis.pcall('PUBLISH', key, '')
return type(receivers) == 'number' and receivers + 1 or 1
