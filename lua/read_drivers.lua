-- Purpose: what a map shows of several drivers.
-- Atomic because: a driver's state, trip and fix are of one moment; and one call costs a tenth of one a driver.
-- KEYS[1...] drivers
-- RETURNS for each driver: is_online, availability_status, trip id, vehicle type, latitude, longitude, time of the last
--   fix in ms; what is missing is empty text, and so is all of a driver without a hash
local FIRST_DRIVER = 1

local drivers = {}
for k = FIRST_DRIVER, #KEYS do
  local who = redis.call('HMGET', KEYS[k], 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'lat', 'lng',
    'fix_ms')
  for i = 1, #who do
    who[i] = who[i] or ''
  end
  drivers[#drivers + 1] = who
end
return drivers
