-- Purpose: takes a driver who is not free any more out of the offers of trips, which makes room there.
-- Atomic because: whether the last open offer has gone is judged together with its going.
-- KEYS[1] trips by the time of their next wave
-- KEYS[2] channel that wakes who does the rounds of the zone
-- KEYS[3...] offers of each trip
-- ARGV[1] driver id
-- ARGV[2...] id of each trip
-- RETURNS how many offers were open
--- @include "clock"
local waves, wake = KEYS[1], KEYS[2]
local driver_id = ARGV[1]
local FIRST_OFFERS, FIRST_TRIP = 3, 2

local withdrawn, is_wave_due = 0, false
for k = FIRST_OFFERS, #KEYS do
  if redis.call('ZREM', KEYS[k], driver_id) == 1 then
    withdrawn = withdrawn + 1
    if redis.call('ZCOUNT', KEYS[k], whole(now_ms), '+inf') == 0 then
      redis.call('ZADD', waves, 'XX', whole(now_ms), ARGV[k - FIRST_OFFERS + FIRST_TRIP])
      is_wave_due = true
    end
  end
end
if is_wave_due then
  redis.call('SPUBLISH', wake, '')
end
return withdrawn
