-- Releases an exclusive lock of several keys: compare and delete, each key by itself.
--
-- 1. Every key that holds our token is deleted, whatever the others hold.
-- 2. Each deletion is published in the channel of its key's name.
--
-- KEYS: the locks of the lease. ARGV: token, 1 if the release is to be published.
-- Reply: 0 a lock is absent; -1 a lock has another value; else all are deleted, and one more than
-- the greatest number of receivers.
-- Prelude: publish.
local reply, most, failed, deleted = 1, 1, false, {}
for _, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if value == ARGV[1] then
    redis.call('DEL', key)
    deleted[#deleted + 1] = key
  elseif type(value) == 'table' then
    failed = value
  elseif value then
    reply = -1
  elseif reply == 1 then
    reply = 0
  end
end
for _, key in ipairs(deleted) do
  most = math.max(most, publish(ARGV[2] == '1' and key or ''))
end
if failed then return failed end
return reply == 1 and most or reply
