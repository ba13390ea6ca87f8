-- Purpose: keeps a server in the list of those that are alive, and says who is in it: the zones are shared out among them.
-- Atomic because: every change of the list has a number of its own, so that two servers with one number share the zones
--   out alike.
-- KEYS[1] servers by the end of their life
-- KEYS[2] the zones that each server serves, by the digest of their names
-- KEYS[3] the list's number and when it began
-- KEYS[4] lists of zones by their digest
-- KEYS[5] channel that tells of each new number
-- ARGV[1] this server
-- ARGV[2] its life from now on, in ms
-- ARGV[3] digest of the zones that it serves
-- ARGV[4] number that it knows: of a list with this one nothing is told but that
-- ARGV[5] number that the list's is not to be below: a zone was taken under it
-- RETURNS {number, age of the list in ms, 1 where the zones of the digest are not known yet or 0, servers and the digests
--   of their zones in turn}
--- @include "clock"
local alive, serves, list, zones, channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local node, life_ms, digest, known, above = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])

local state = redis.call('HMGET', list, 'number', 'since_ms')
local number, since_ms = tonumber(state[1] or '0'), tonumber(state[2] or now_ms)
local gone = redis.call('ZRANGEBYSCORE', alive, '-inf', whole(now_ms))
-- An end that lies further ahead is of a clock that stepped back.
for _, server in ipairs(redis.call('ZRANGEBYSCORE', alive, '(' .. whole(now_ms + life_ms), '+inf')) do
  redis.call('ZADD', alive, whole(now_ms + life_ms), server)
end
for _, server in ipairs(gone) do
  if server ~= node then
    redis.call('ZREM', alive, server)
    redis.call('HDEL', serves, server)
  end
end
local is_new = redis.call('HGET', serves, node) ~= digest
local is_changed = is_new or number < above or #gone > 1 or #gone == 1 and gone[1] ~= node
redis.call('ZADD', alive, whole(now_ms + life_ms), node)
if is_changed then
  -- By the clock, so that it goes on where an emptied Redis has forgotten it.
  number = math.max(now_ms, number + 1, above + 1)
  redis.call('HSET', serves, node, digest)
  redis.call('HSET', list, 'number', whole(number), 'since_ms', whole(since_ms))
  redis.call('SPUBLISH', channel, whole(number))
end
local servers = {}
if whole(number) ~= known then
  servers = redis.call('HGETALL', serves)
end
local is_unknown = not redis.call('HGET', zones, digest)
return { number, math.max(0, now_ms - since_ms), is_unknown and 1 or 0, servers }
