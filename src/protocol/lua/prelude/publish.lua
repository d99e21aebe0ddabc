-- Publishes a release in `channel` unless it is empty, as an empty message if none is given. Returns
-- one more than the number of receivers; 1 if the server denies PUBLISH.
local function publish(channel, message)
  local receivers = channel ~= '' and redis.pcall('PUBLISH', channel, message or '')
  return type(receivers) == 'number' and receivers + 1 or 1
end
