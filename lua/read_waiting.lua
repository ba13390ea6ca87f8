-- Purpose: trips that look for a driver, with who may not have them.
-- Atomic because: an offer that has lapsed is counted as let pass before a wave has said so.
-- KEYS[1...] for each trip: trip, offers, barred, passed
-- ARGV[1] longest time a trip waits for a driver, in ms; an offer that ends later is of a clock that stepped back, and over
-- RETURNS for each trip {trip as a flat hash, how many offers are open, drivers who are barred, drivers who let an
--   offer pass}
--- @include "clock"
local latest_ms = now_ms + tonumber(ARGV[1])
local FIRST_TRIP, KEYS_EACH = 1, 4

local result = {}
for k = FIRST_TRIP, #KEYS, KEYS_EACH do
  local passed = redis.call('SMEMBERS', KEYS[k + 3])
  for _, driver_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[k + 1], '-inf', whole(now_ms))) do
    passed[#passed + 1] = driver_id
  end
  for _, driver_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[k + 1], '(' .. whole(latest_ms), '+inf')) do
    passed[#passed + 1] = driver_id
  end
  result[#result + 1] = {
    redis.call('HGETALL', KEYS[k]), redis.call('ZCOUNT', KEYS[k + 1], '(' .. whole(now_ms), whole(latest_ms)),
    redis.call('SMEMBERS', KEYS[k + 2]), passed,
  }
end
return result
