-- Purpose: the version of trips, the wave that they are in, and who holds an open offer of each.
-- Atomic because: what is open is judged by Redis' own clock, and one call costs a tenth of one a trip.
-- KEYS[1...] for each trip: trip, then its offers
-- RETURNS for each trip: version (-1: there is no such trip), number of its last wave, drivers who hold an open offer
--- @include "clock"
local FIRST_TRIP = 1

local waves = {}
for k = FIRST_TRIP, #KEYS, 2 do
  local trip = redis.call('HMGET', KEYS[k], 'version', 'wave')
  waves[#waves + 1] = { tonumber(trip[1] or '-1'), tonumber(trip[2] or '0'),
    redis.call('ZRANGEBYSCORE', KEYS[k + 1], '(' .. whole(now_ms), '+inf') }
end
return waves
