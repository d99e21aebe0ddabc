-- Releases a permit: compare and delete. With the last permit the key goes, and with it the number
-- of permits. The release is published also where the node has no permit of ours: waiters may listen
-- there. With 1, it is published only if this call deleted the permit.
--
-- KEYS: permits. ARGV: token, channel or '' for none, 1 if only a deletion is published, index of the
-- permit.
-- Reply: 0 free; -1 another owner's, left untouched; else deleted, and one more than the number of
-- receivers.
-- Prelude: publish, permit.
local held = redis.call('HGET', KEYS[1], ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local _, owner = parse_permit(held, now)
if owner ~= ARGV[1] then
  if ARGV[3] ~= '1' then publish(ARGV[2]) end
  return owner and -1 or 0
end
redis.call('HDEL', KEYS[1], ARGV[4])
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('HDEL', KEYS[1], 'permits') end
return publish(ARGV[2])
