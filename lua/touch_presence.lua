-- Purpose: registers connections, or prolongs their life after traffic: several in one call.
-- Atomic because: a connection's own key, its user's list and the zone's list must agree on until when it lives.
-- KEYS[1] users of the zone by the end of their presence
-- KEYS[2...] for each connection: its key, then its user's list of connections
-- ARGV[1...] groups of four: user's address (role:id), connection id, what is known of it (JSON), life in ms
-- RETURNS how many connections were touched
--- @include "clock"
local present = KEYS[1]
local FIRST_PAIR = 2

local touched = 0
for k = FIRST_PAIR, #KEYS, 2 do
  local g = 1 + 4 * touched
  local address, connection, about, life_ms = ARGV[g], ARGV[g + 1], ARGV[g + 2], tonumber(ARGV[g + 3])
  local ends = whole(now_ms + life_ms)
  redis.call('SET', KEYS[k], about, 'PX', life_ms)
  redis.call('ZREMRANGEBYSCORE', KEYS[k + 1], '-inf', whole(now_ms))
  redis.call('ZADD', KEYS[k + 1], ends, connection)
  redis.call('PEXPIRE', KEYS[k + 1], life_ms, 'GT')
  if redis.call('PTTL', KEYS[k + 1]) < 0 then
    redis.call('PEXPIRE', KEYS[k + 1], life_ms)
  end
  redis.call('ZADD', present, 'GT', ends, address)
  touched = touched + 1
end
return touched
