-- Purpose: takes the newest fix of each of several drivers of one vehicle type.
-- Atomic because: the newest fix wins, and only a driver who may be offered a trip now is in the geo set: hash,
--   set and time must not part.
-- KEYS[1] epoch of the zone
-- KEYS[2] geo set of the vehicle type
-- KEYS[3] times of the drivers' last fixes
-- KEYS[4] vehicle types that have a geo set
-- KEYS[5...] drivers, as many as there are groups in ARGV
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2] vehicle type
-- ARGV[3...] groups of four: driver id, latitude, longitude, time of the fix in ms
-- RETURNS {code, now in ms, a result a driver}: code is taken or cold; a result is
--   {taken, the driver's trip or empty}, {late, …}, {unknown, …}, {offline, …} or {other_vehicle, the right one}
--- @include "clock"
local epoch, geo, seen, vehicles = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fix_age_ms, vehicle_type = tonumber(ARGV[1]), ARGV[2]
local FIRST_DRIVER, FIRST_GROUP = 5, 3

if redis.call('EXISTS', epoch) == 0 then
  return { 'cold', now_ms, {} }
end
redis.call('SADD', vehicles, vehicle_type)
local results = {}
for k = FIRST_DRIVER, #KEYS do
  local driver, g = KEYS[k], FIRST_GROUP + 4 * (k - FIRST_DRIVER)
  local driver_id, lat, lng = ARGV[g], ARGV[g + 1], ARGV[g + 2]
  -- A clock that runs ahead must not shut out every later fix.
  local fix_ms = math.min(tonumber(ARGV[g + 3]), now_ms)
  local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'fix_ms')
  local result = 'taken'
  if not who[1] then
    result = 'unknown'
  elseif who[1] ~= '1' then
    result = 'offline'
  elseif who[4] ~= vehicle_type then
    result = 'other_vehicle'
  elseif who[5] and tonumber(who[5]) >= fix_ms then
    result = 'late'
  else
    redis.call('HSET', driver, 'lat', lat, 'lng', lng, 'fix_ms', whole(fix_ms))
    redis.call('ZADD', seen, whole(fix_ms), driver_id)
    if who[2] == 'available' and (who[3] or '') == '' and fix_ms > now_ms - fix_age_ms then
      redis.call('GEOADD', geo, lng, lat, driver_id)
    else
      redis.call('ZREM', geo, driver_id)
    end
  end
  results[#results + 1] = { result, result == 'other_vehicle' and who[4] or who[3] or '' }
end
return { 'taken', now_ms, results }
