-- Purpose: removes one connection, by its own id: an old socket's close cannot evict a new one.
-- Atomic because: the user is gone only if no other connection of theirs is alive at that moment.
-- KEYS[1] the connection
-- KEYS[2] its user's list of connections
-- KEYS[3] users of the zone by the end of their presence
-- ARGV[1] connection id
-- ARGV[2] user's address (role:id)
-- RETURNS how many connections the user has left
--- @include "clock"
local own, connections, present = KEYS[1], KEYS[2], KEYS[3]
local connection, address = ARGV[1], ARGV[2]

redis.call('DEL', own)
local was = redis.call('ZREM', connections, connection)
redis.call('ZREMRANGEBYSCORE', connections, '-inf', whole(now_ms))
local last = redis.call('ZRANGE', connections, -1, -1, 'WITHSCORES')
if last[2] then
  redis.call('ZADD', present, last[2], address)
elseif was == 1 then
  -- Gone as of now: the grace period begins.
  redis.call('ZADD', present, whole(now_ms), address)
end
return redis.call('ZCARD', connections)
