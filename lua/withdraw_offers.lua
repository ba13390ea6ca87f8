-- Purpose: takes a driver who is not free any more out of the offers of trips, which makes room there.
-- Atomic because: whether the last open offer has gone is judged together with its going.
-- KEYS[1] trips by the time of their next wave
-- KEYS[2...] offers of each trip
-- ARGV[1] driver id
-- ARGV[2...] id of each trip
-- RETURNS how many offers were open
--- @include "clock"
local waves = KEYS[1]
local driver_id = ARGV[1]
local FIRST_TRIP = 2  -- the offers of a trip stand where its id stands

local withdrawn = 0
for k = FIRST_TRIP, #KEYS do
  if redis.call('ZREM', KEYS[k], driver_id) == 1 then
    withdrawn = withdrawn + 1
    if redis.call('ZCOUNT', KEYS[k], whole(now_ms), '+inf') == 0 then
      redis.call('ZADD', waves, 'XX', whole(now_ms), ARGV[k])
    end
  end
end
return withdrawn
