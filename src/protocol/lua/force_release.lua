-- Deletes an exclusive lock regardless of its holder, at an operator's request.
--
-- 1. A value of another type is no lock: GET fails, and nothing changes.
-- 2. The release is published also where there is no lock: waiters may listen there.
--
-- KEYS: the lock. ARGV: channel or '' for none.
-- Reply: 0 absent; else deleted, and one more than the number of receivers.
-- Prelude: publish.
local value = redis.call('GET', KEYS[1])
if value then redis.call('DEL', KEYS[1]) end
local reply = publish(ARGV[1])
return value and reply or 0
