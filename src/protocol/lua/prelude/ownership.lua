-- Returns 1 if each of the first `count` keys holds `token`, -1 if one holds another value,
-- else 0 (one is absent).
local function ownership(count, token)
  local state = 1
  for i = 1, count do
    local value = redis.call('GET', KEYS[i])
    if value ~= token then
      if value then return -1 end
      state = 0
    end
  end
  return state
end
