-- Raises the fence counters of a lock that is ours to its fencing token (S12): a quorum of counters
-- must be as high before the next holder's token is drawn.
--
-- KEYS: the locks of the lease, or the writer; the fence counter of each. ARGV: token, fencing
-- token.
-- Reply: 1 the counters are at least as high; 0 a lock is absent; -1 a lock has another value.
-- Prelude: ownership, fence.
local locks = #KEYS / 2
local state = ownership(locks, ARGV[1])
if state ~= 1 then return state end
local counters, foreign = read_fences(locks)
if foreign then return foreign end
for i = locks + 1, #KEYS do
  local counter = counters[i]
  if not counter or tonumber(counter) < tonumber(ARGV[2]) then
    redis.call('SET', KEYS[i], ARGV[2], 'PX', FENCE_TTL)
  end
end
return 1
