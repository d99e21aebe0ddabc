-- Publishes the release of an exclusive lock of one key, the local `key`, and wakes the first process
-- of its waiting list. It is the tail of a script and no function, because Lua creates a function at
-- every call.
--
-- 1. The message in the channel of the key's name says that a process with a place in the list, if
--    there is one, is woken by a message of its own.
-- 2. If the message had receivers, or ARGV[2] is 2, the first process of the list is taken from it
--    and woken. A process that does not listen any more is passed over, up to 16 of them.
-- 3. The processes that come within the first `near` of the list are told their places. The others
--    are not subscribed to the channel of the key's name.
--
-- The list is no declared key, because a user may have rights to the lock and none to the list. It
-- shares the lock's slot. Without it the waiters check after a time whether the lock is free.
--
-- Locals: `key`, `reply`, and `near`, the number of processes that listen to the lock's channel.
-- ARGV[2]: 2 if processes may be in the list although none is subscribed.
-- Reply: the local `reply` unless it is 1. Else one more than the number of receivers, 1 if the
-- server denies PUBLISH. If a process of the list was woken, that number is negative, and -2 at most.
local receivers = redis.pcall('PUBLISH', key, 'next')
if type(receivers) ~= 'number' then return reply end
if receivers > 0 or ARGV[2] == '2' then
  local list = (string.find(key, '^[^{]*{[^}]+}') and key or '{' .. key .. '}') .. ':waiting'
  for passed = 0, 15 do
    local first = redis.pcall('ZRANGE', list, 0, 0)[1]
    if not first then break end
    redis.pcall('ZREM', list, first)
    local heard = redis.pcall('PUBLISH', first, 'wake ' .. key)
    if type(heard) ~= 'number' then break end
    if heard > 0 then
      local place = math.max(near - 1 - passed, 0)
      for _, channel in ipairs(redis.pcall('ZRANGE', list, place, near - 1)) do
        redis.pcall('PUBLISH', channel, 'place ' .. place .. ' ' .. key)
        place = place + 1
      end
      return reply == 1 and -1 - math.max(receivers, 1) or reply
    end
  end
end
return reply == 1 and receivers + 1 or reply
