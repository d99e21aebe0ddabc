-- Publishes a release in `channel` unless it is empty. Returns one more than the number of
-- receivers; 1 if the server denies PUBLISH.
local function publish(channel)
  local receivers = channel ~= '' and redis.pcall('PUBLISH', channel, '')
  return type(receivers) == 'number' and receivers + 1 or 1
end
