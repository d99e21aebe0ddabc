-- Gives up a place in the waiting list of an exclusive lock.
--
-- 1. The wake channel is removed from the list.
-- 2. A process that has come near is told its place.
-- 3. If the channel had no place any more, a release has woken this process, which waits no more. So
--    the next one is woken, as after a release.
--
-- KEYS: the lock, its waiting list. ARGV: wake channel, 2 (for the tail).
-- Reply: 1 if the channel had a place, else 0.
-- `near` is the number of processes that listen to the lock's channel. Prelude: near.
-- Tail: publish_next.
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then
  tell_last_near(KEYS[2], KEYS[1])
  return 1
end
local key, reply = KEYS[1], 0
