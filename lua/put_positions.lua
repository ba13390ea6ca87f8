-- Purpose: takes the newest fix of each of several drivers of one vehicle type.
-- Atomic because: the newest fix wins, and only a driver who may be offered a trip now is in the geo set: hash,
--   set and time must not part.
-- KEYS[1] epoch of the zone
-- KEYS[2] geo set of the vehicle type
-- KEYS[3] times of the drivers' last fixes
-- KEYS[4] vehicle types that have a geo set
-- KEYS[5...] for each fix: driver, then the logs of the limits that apply
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2] vehicle type
-- ARGV[3] how many limits apply to each fix, n
-- ARGV[4...] n pairs for the limits (most admitted, window in s), then for each fix: driver id, latitude, longitude,
--   time of the fix in ms, or empty: now
-- RETURNS {code, now in ms, a result a fix}: code is taken or cold; a result is {code, detail,
--   index of the limit to report, remaining, reset in ms, time of the fix in ms}, with the codes taken (and the driver's trip or empty), late, unknown, offline,
--   other_vehicle (and the right one) and rate_limited; a fix of any code but the last has been counted
--- @include "clock"
--- @include "limits"
--- @include "eligibility"
local epoch, geo, seen, vehicles = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fix_age_ms, vehicle_type, limits = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local FIRST_DRIVER, FIRST_PAIR = 5, 4

if redis.call('EXISTS', epoch) == 0 then
  return { 'cold', now_ms, {} }
end
redis.call('SADD', vehicles, vehicle_type)
local results = {}
local g = FIRST_PAIR + 2 * limits
for k = FIRST_DRIVER, #KEYS, 1 + limits do
  local is_refused, limit_index, remaining, reset_ms = check_limits(k + 1, FIRST_PAIR, k + limits)
  local code, detail = 'rate_limited', ''
  -- A clock that runs ahead must not shut out every later fix.
  local fix_ms = math.min(tonumber(ARGV[g + 3]) or now_ms, now_ms)
  if not is_refused then
    remaining = record_admission(k + 1, FIRST_PAIR, remaining, k + limits)
    local driver_id, lat, lng = ARGV[g], ARGV[g + 1], ARGV[g + 2]
    local who = redis.call('HMGET', KEYS[k], 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'fix_ms')
    local known_ms = tonumber(who[5]) or 0
    code, detail = 'taken', who[3] or ''
    if not who[1] then
      code = 'unknown'
    elseif who[1] ~= '1' then
      code = 'offline'
    elseif who[4] ~= vehicle_type then
      code, detail = 'other_vehicle', who[4]
    elseif known_ms <= now_ms and (known_ms > fix_ms or known_ms == fix_ms and ARGV[g + 3] ~= '') then
      -- Of several that are measured now, the last stands; one that lies ahead is of a clock that stepped back.
      code = 'late'
    else
      redis.call('HSET', KEYS[k], 'lat', lat, 'lng', lng, 'fix_ms', whole(fix_ms))
      redis.call('ZADD', seen, whole(fix_ms), driver_id)
      if is_free(who[1], who[2], who[3]) and is_fresh(fix_ms, fix_age_ms) then
        redis.call('GEOADD', geo, lng, lat, driver_id)
      else
        redis.call('ZREM', geo, driver_id)
      end
    end
  end
  results[#results + 1] = { code, detail, limit_index, remaining, reset_ms, fix_ms }
  g = g + 4
end
return { 'taken', now_ms, results }
