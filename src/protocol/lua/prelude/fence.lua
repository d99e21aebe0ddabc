-- A fence counter is kept for 30 days without use, in ms.
local FENCE_TTL = 2592000000

-- Returns the fence counters in KEYS behind the first `locks`, by index, false where one is absent.
-- Returns nil and an error reply if a counter is no integer below 2^53 - 1: a foreign value, which
-- cannot be counted on.
local function read_fences(locks)
  local counters = {}
  for i = locks + 1, #KEYS do
    local counter = redis.call('GET', KEYS[i])
    if counter and counter ~= '0'
      and not (string.find(counter, '^[1-9]%d*$') and tonumber(counter) < 9007199254740991) then
      return nil, redis.error_reply('WRONGTYPE the fence counter is no number')
    end
    counters[i] = counter
  end
  return counters
end

-- Increments the fence counters (S12), raises all of them to the highest and returns it; 1 if there
-- are none. An absent counter starts at the server's time in microseconds: above every value that
-- it had before the server lost its data. A counter is passed on as a number, because `..` and
-- `tostring` round it.
local function count_fences(locks, counters)
  local counter, highest = 1, 1
  for i = locks + 1, #KEYS do
    if not counters[i] then
      local time = redis.call('TIME')
      redis.call('SET', KEYS[i], time[1] * 1000000 + time[2])
    end
    counter = redis.call('INCR', KEYS[i])
    redis.call('PEXPIRE', KEYS[i], FENCE_TTL)
    if counter > highest then highest = counter end
  end
  if locks > 1 then
    for i = locks + 1, #KEYS do redis.call('SET', KEYS[i], highest, 'PX', FENCE_TTL) end
  end
  return highest
end
