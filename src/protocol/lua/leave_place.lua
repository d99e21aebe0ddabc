-- Gives up a place in the waiting list of an exclusive lock.
--
-- 1. The wake channel is removed from the list.
-- 2. A process that has come near is told its place.
--
-- KEYS: the lock, its waiting list. ARGV: wake channel.
-- Reply: 1 if the channel had a place, else 0.
-- `near` is the number of processes that listen to the lock's channel. Prelude: near.
local left = redis.call('ZREM', KEYS[2], ARGV[1])
if left == 1 then tell_last_near(KEYS[2], KEYS[1]) end
return left
