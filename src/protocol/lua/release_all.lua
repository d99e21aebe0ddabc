-- Releases an exclusive lock of several keys: compare and delete, each key by itself. Also keeps an
-- exclusive lock of any number of keys for the rest of its minimum time.
--
-- 1. Every key that holds our token is deleted, whatever the others hold. With a rest its expiry is
--    set in place of that, and the token stays.
-- 2. The release is published in the channel of each key's name, also where the node has no key of
--    ours: waiters may listen there. With 0, the keys are published that this call deleted or kept.
-- 3. The message of a kept lock is `kept`. A waiter then asks the nodes how long, because the end of
--    that time is not published.
--
-- KEYS: the locks of the lease. ARGV: token; 1 if the release is to be published, 0 if only deletions
-- are, else empty; ms of the rest if the lock is kept.
-- Reply: an error if a key could not be read; 0 a lock is absent; -1 a lock has another value; else
-- all are deleted or kept, and one more than the greatest number of receivers.
-- Prelude: publish.
local reply, most, failed, ours = 1, 1, false, {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if value == ARGV[1] then
    ours[i] = true
    if ARGV[3] then redis.call('PEXPIRE', key, ARGV[3]) else redis.call('DEL', key) end
  elseif type(value) == 'table' then
    failed = value
  elseif value then
    reply = -1
  elseif reply == 1 then
    reply = 0
  end
end
for i, key in ipairs(KEYS) do
  local publishes = ARGV[2] == '1' or ARGV[2] == '0' and ours[i]
  most = math.max(most, publish(publishes and key or '', ARGV[3] and 'kept'))
end
if failed then return failed end
return reply == 1 and most or reply
