-- Purpose: registers connections, or prolongs their life after traffic: several in one call. A driver who works in
--   another zone is not touched here: nobody would find them.
-- Atomic because: a connection's own key, its user's list and the zone's list must agree on until when it lives.
-- KEYS[1] users of the zone by the end of their presence
-- KEYS[2...] for each connection: its key, its user's list of connections, and the driver (KEYS[1] for other users)
-- ARGV[1] the zone
-- ARGV[2...] groups of five: user's address (role:id), connection id, what is known of it (JSON), life in ms, version of
--   the driver's row that places them here (-1: none)
-- RETURNS for each connection 1 where it was touched, 0 where it was, and the zone does not know the driver, or not yet
--   that they work here; -1 where the driver works elsewhere
--- @include "clock"
local present, zone = KEYS[1], ARGV[1]
local FIRST_KEY, KEYS_EACH, FIRST_TOUCH, ARGS_EACH = 2, 3, 2, 5

local results = {}
local g = FIRST_TOUCH
for k = FIRST_KEY, #KEYS, KEYS_EACH do
  local own, connections, driver = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local address, connection, about, life_ms = ARGV[g], ARGV[g + 1], ARGV[g + 2], tonumber(ARGV[g + 3])
  local known = driver == present and { zone } or redis.call('HMGET', driver, 'zone', 'version')
  local is_here = known[1] == zone
  if known[1] and not is_here and tonumber(known[2]) > tonumber(ARGV[g + 4]) then
    results[#results + 1] = -1
  else
    local ends = whole(now_ms + life_ms)
    redis.call('SET', own, about, 'PX', life_ms)
    redis.call('ZREMRANGEBYSCORE', connections, '-inf', whole(now_ms))
    redis.call('ZADD', connections, ends, connection)
    redis.call('PEXPIRE', connections, life_ms, 'GT')
    if redis.call('PTTL', connections) < 0 then
      redis.call('PEXPIRE', connections, life_ms)
    end
    redis.call('ZADD', present, 'GT', ends, address)
    results[#results + 1] = is_here and 1 or 0
  end
  g = g + ARGS_EACH
end
return results
