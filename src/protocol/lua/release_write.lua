-- Releases a write lock: compare and delete. If a refused reader waits, a reader turn starts. The
-- release is published also where the node has no key of ours: waiters may listen there. With 1, it
-- is published only if this call deleted the key.
--
-- KEYS: writer, turn. ARGV: token, length of a reader turn in ms or 0 for none, channel or '' for
-- none, 1 if only a deletion is published.
-- Reply: 0 absent; -1 another value, left untouched; else deleted, and one more than the number of
-- receivers.
local writer, turn, interval, channel = redis.call('GET', KEYS[1]), KEYS[2], ARGV[2], ARGV[3]
local is_ours = writer == ARGV[1]
if is_ours then
  redis.call('DEL', KEYS[1])
  if interval ~= '0' and redis.pcall('GET', turn) == 'asked' then
    redis.pcall('SET', turn, 'given', 'PX', interval)
  end
end
if ARGV[4] == '1' and not is_ours then channel = '' end
local receivers = channel ~= '' and redis.pcall('PUBLISH', channel, '')
if not is_ours then return writer and -1 or 0 end
return type(receivers) == 'number' and receivers + 1 or 1
