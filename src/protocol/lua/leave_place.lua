-- Gives up a place in the waiting list of an exclusive lock.
--
-- 1. The wake channel is removed from the list.
-- 2. The process that has become the fourth is told its place.
--
-- KEYS: the lock, its waiting list. ARGV: wake channel.
-- Reply: 1 if the channel had a place, else 0.
-- Prelude: near.
local left = redis.call('ZREM', KEYS[2], ARGV[1])
if left == 1 then tell_fourth(KEYS[2], KEYS[1]) end
return left
