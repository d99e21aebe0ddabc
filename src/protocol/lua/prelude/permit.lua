-- A semaphore is a hash: field `permits` is the number of permits; each smaller number in use maps
-- to `<expiry in ms> <token>`.

-- Returns expiry and owner of the stored permit `held`; nothing if it is free or expired. A foreign
-- value holds the permit without an end: 2^53 - 1, above which no integer is exact in Lua.
local function parse_permit(held, now)
  if not held then return end
  local expires_at, owner = string.match(held, '^(%d+) (.*)$')
  expires_at = math.min(tonumber(expires_at) or math.huge, 9007199254740991)
  if expires_at >= now then return expires_at, owner or '' end
end

-- Lets the hash, which had `left` ms to live before it was written to, live until a second after
-- `expires_at`, unless it lives longer anyway. A hash without an expiry keeps none.
local function extend_hash_ttl(left, expires_at, now)
  local ttl = expires_at - now + 1000
  if left ~= -1 and left < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
end
