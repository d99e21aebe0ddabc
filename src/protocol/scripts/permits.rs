//! The scripts of semaphores.
//!
//! A semaphore has one key, `:permits`, a hash: `permits` is how many it has, and each number below that which is held is
//! the time at which that permit ends, a space, and its owner's token.

/// Sets `stays` and `owner` from what is stored for a permit, `held`: until when it is held and by whom. Nil where it is free, as
/// one is whose time is over. A foreign value holds it without an end.
macro_rules! permit {
    () => {
        concat!(
            "
local stays, owner
if held then
  stays, owner = string.match(held, '^(%d+) (.*)$')
  stays, owner = math.min(tonumber(stays) or math.huge, ",
            most!(),
            "), owner or ''
  if stays < now then stays, owner = nil, nil end
end"
        )
    };
}

/// Stores a permit that is ours until `stays`, together with `fields`.
macro_rules! store {
    ($fields:literal) => {
        concat!(
            "
local set, left, life = KEYS[1], redis.call('PTTL', KEYS[1]), stays - now
redis.call('HSET', set, ",
            $fields,
            "ARGV[3], string.format('%.0f %s', stays, ARGV[1]))",
            keep!()
        )
    };
}

/// Take one permit of a semaphore: a Redlock of its own, so that quorums never give out more of them than there are.
///
/// 1. Refused where the semaphore has another number of permits, if one of them is held. Where none is, it has ours from now
///    on.
/// 2. Refused while another holds this permit. The answer says which are free, so that the next request asks for one of them.
/// 3. Otherwise the token is stored with its end, not before that of ours that may be there.
/// 4. A hash that is none of ours is left untouched: one that does not say how many permits there are, or has more than they may be.
///
/// KEYS: the permits. ARGV: token, TTL in ms, which permit, how many there are. Reply: 1 granted; or −1 and how many there are
/// here; or for how many ms the next one to end is held, and a bit for each that is free, 32 in a number, the lowest first.
pub(crate) const ACQUIRE_PERMIT: &str = concat!(
    "local kept, held = unpack(redis.call('HMGET', KEYS[1], 'permits', ARGV[3]))",
    now!(),
    permit!(),
    "
local differs = kept and kept ~= ARGV[4]
if not kept or differs or owner and owner ~= ARGV[1] then
  local fields = redis.call('HLEN', KEYS[1])
  local count = kept and string.find(kept, '^[1-9]%d*$') and tonumber(kept) or 0
  if fields > 0 and (fields > 1025 or count < 1 or count > 1024) then
    return redis.error_reply('WRONGTYPE these are no permits')
  end
end
if differs or owner and owner ~= ARGV[1] then
  local taken, next = {}, false
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local held = all[i] ~= 'permits' and all[i + 1]",
    permit!(),
    "
    if stays then
      taken[all[i]] = true
      if not next or stays < next then next = stays end
    end
  end
  if differs and next then return {-1, tonumber(kept)} end
  if not differs then
    local reply = {next - now}
    for slot = 0, ARGV[4] - 1 do
      local word = math.floor(slot / 32) + 2
      reply[word] = (reply[word] or 0) + (taken[tostring(slot)] and 0 or 2 ^ (slot % 32))
    end
    return reply
  end
  redis.call('DEL', KEYS[1])
end
stays = math.max(stays or 0, now + ARGV[2])",
    store!("'permits', ARGV[4], "),
    "
return 1"
);

/// Extend a permit (rule S5): never kills, never revives, never shortens.
///
/// 1. Nothing is changed unless the permit is our token's.
/// 2. A field that is not there is deleted (our token is none), so that a server without memory lets the permit go on. To delete
///    the permit itself would lose it where we may not store it again.
/// 3. The end becomes the later of what it is and the TTL from now.
///
/// KEYS: the permits. ARGV: token, TTL in ms, which permit. Reply: 1 ours and extended, 0 nobody's, −1 another's.
pub(crate) const EXTEND_PERMIT: &str = concat!(
    "local held = redis.call('HGET', KEYS[1], ARGV[3])",
    now!(),
    permit!(),
    "
if owner ~= ARGV[1] then return owner and -1 or 0 end
if stays < now + ARGV[2] then
  stays = now + ARGV[2]
  redis.call('HDEL', KEYS[1], ARGV[1])",
    store!(""),
    "
end
return 1"
);

/// Release a permit: compare and delete. With the last one the key goes, and with it how many there are.
///
/// KEYS: the permits. ARGV: token, where to publish it or nothing, which permit. Reply: 0 nobody's; −1 another's, left untouched;
/// else it was deleted, and the reply is one more than who heard of it.
pub(crate) const RELEASE_PERMIT: &str = concat!(
    "local held, channel = redis.call('HGET', KEYS[1], ARGV[3]), ARGV[2]",
    now!(),
    permit!(),
    "
if owner ~= ARGV[1] then return owner and -1 or 0 end
redis.call('HDEL', KEYS[1], ARGV[3])
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('HDEL', KEYS[1], 'permits') end",
    publish!(),
    "
return heard"
);
