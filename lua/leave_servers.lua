-- Purpose: takes a server that stops out of the list of those that are alive, so that others take its zones at once.
-- Atomic because: the list and its number change together.
-- KEYS[1] servers by the end of their life
-- KEYS[2] the zones that each server serves, by the digest of their names
-- KEYS[3] the list's number and when it began
-- KEYS[4] channel that tells of each new number
-- ARGV[1] this server
-- RETURNS 1 where it was in the list, else 0
--- @include "clock"
local alive, serves, list, channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node = ARGV[1]

redis.call('HDEL', serves, node)
if redis.call('ZREM', alive, node) == 0 then
  return 0
end
local number = math.max(now_ms, tonumber(redis.call('HGET', list, 'number') or '0') + 1)
redis.call('HSET', list, 'number', whole(number))
redis.call('SPUBLISH', channel, whole(number))
return 1
