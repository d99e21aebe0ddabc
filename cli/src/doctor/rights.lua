-- Reports which commands the user may not run (Redis 7.0 and later).
--
-- KEYS: none. ARGV: commands, their words separated by the unit separator.
-- Reply: the positions of the denied commands; or -1 where the server cannot tell.
if not redis.acl_check_cmd then return -1 end
local denied = {}
for i, text in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(text, '[^\31]+') do words[#words + 1] = word end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not known or not allowed then denied[#denied + 1] = i end
end
return denied
