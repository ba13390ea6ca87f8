-- Purpose: takes drivers whose last fix is too old out of the geo set: a geo member has no life of its own.
-- Atomic because: a fix that arrives in between must not be swept away.
-- KEYS[1] times of the drivers' last fixes
-- KEYS[2...] geo sets of all vehicle types of the zone
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2] most drivers in one call
-- RETURNS how many drivers were swept
--- @include "clock"
local seen = KEYS[1]
local fix_age_ms, max_drivers = tonumber(ARGV[1]), ARGV[2]

local stale = redis.call('ZRANGEBYSCORE', seen, '-inf', whole(now_ms - fix_age_ms), 'LIMIT', 0, max_drivers)
for _, driver_id in ipairs(stale) do
  for k = 2, #KEYS do
    redis.call('ZREM', KEYS[k], driver_id)
  end
  redis.call('ZREM', seen, driver_id)
end
return #stale
