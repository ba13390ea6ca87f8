-- Purpose: what a round of matching is to know of drivers.
-- Atomic because: what is open, and who is present, is judged by Redis' own clock.
-- KEYS[1] users of the zone by the end of their presence
-- KEYS[2] offers in a row that drivers turned down
-- KEYS[3...] for each driver: driver, then inbox
-- ARGV[1] longest time a trip waits for a driver, in ms; an offer that ends later is of a clock that stepped back, and over
-- ARGV[2...] id of each driver
-- RETURNS for each driver {is_online, availability_status, trip_id, vehicle_type, lat, lng, time of the fix in ms, since
--   when they are free in ms or empty, the end of their presence in ms or empty, offers turned down or empty, how many
--   offers are open}; what is not known of them is empty, too
--- @include "clock"
local present, turned_down = KEYS[1], KEYS[2]
local latest_ms = now_ms + tonumber(ARGV[1])
local FIRST_DRIVER, KEYS_EACH, FIRST_ID = 3, 2, 2

local result = {}
for a = FIRST_ID, #ARGV do
  local k, driver_id = FIRST_DRIVER + (a - FIRST_ID) * KEYS_EACH, ARGV[a]
  local who = redis.call('HMGET', KEYS[k], 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'lat', 'lng',
    'fix_ms', 'free_since')
  for i = 1, 8 do
    who[i] = who[i] or ''
  end
  who[9] = redis.call('ZSCORE', present, 'driver:' .. driver_id) or ''
  who[10] = redis.call('HGET', turned_down, driver_id) or ''
  who[11] = redis.call('ZCOUNT', KEYS[k + 1], '(' .. whole(now_ms), whole(latest_ms))
  result[#result + 1] = who
end
return result
