-- Tells the last of the first `near` processes of a waiting list its place, after one before it has
-- left: only these are subscribed to the lock's channel.
local function tell_last_near(list, lock)
  local last = redis.call('ZRANGE', list, near - 1, near - 1)[1]
  if last then redis.call('PUBLISH', last, 'place ' .. near - 1 .. ' ' .. lock) end
end
