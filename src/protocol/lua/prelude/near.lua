-- Tells the process that is the fourth of a waiting list, after one before it has left, its place:
-- only the first four are subscribed to the lock's channel.
local function tell_fourth(list, lock)
  local fourth = redis.call('ZRANGE', list, 3, 3)[1]
  if fourth then redis.call('PUBLISH', fourth, 'place 3 ' .. lock) end
end
