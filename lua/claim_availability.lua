-- Purpose: lets one change of a driver's availability go on to its commit, together with the release of a trip
--   that has not started where the driver goes offline.
-- Atomic because: the driver's trip, its state and both claims are decided on together; an accept in between
--   would leave an offline driver with a trip.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] claims by the end of their lease
-- KEYS[4] driver
-- KEYS[5] claim on the driver
-- KEYS[6] the driver's active trip (the driver's own key where there is none)
-- KEYS[7] claim on that trip (the driver's claim where there is none)
-- KEYS[8] users of the zone by the end of their presence
-- KEYS[9...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what is resolved already, as words: key, driver (Postgres was asked), limits (were counted)
-- ARGV[6] entry for KEYS[3]
-- ARGV[7] id of the trip in KEYS[6], or empty
-- ARGV[8] 1 where the driver goes offline
-- ARGV[9] 1 where the driver changes zone
-- ARGV[10] the new vehicle type, or empty: as it was
-- ARGV[11] address (role:id) of a user who has to be absent, or empty
-- ARGV[12] zone that the change starts from
-- ARGV[13...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, index of the limit to report, remaining, reset in ms, …}, where … is
--   claimed: driver as a flat hash, trip to release as a flat hash (empty where none is)
--   driver_moved: the id of the trip the driver has now; replay: the record; refusals: version and state
--   came_back: nothing; the user of ARGV[11] is present
--   driver_elsewhere: nothing; the driver works in another zone than ARGV[12]
--   cold, key_unresolved, driver_unknown, trip_unknown, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
local driver, driver_claim, trip, trip_claim = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local trip_id, goes_offline, changes_zone, vehicle_type = ARGV[7], ARGV[8] == '1', ARGV[9] == '1', ARGV[10]
local present, absentee, from_zone = KEYS[8], ARGV[11], ARGV[12]
local FIRST_LIMIT, FIRST_RATE = 9, 13
--- @include "claim"

if absentee ~= '' and tonumber(redis.call('ZSCORE', present, absentee) or 0) > now_ms then
  return reply('came_back')
end
local who = redis.call('HMGET', driver, 'is_online', 'trip_id', 'vehicle_type', 'zone')
if not who[1] and not is_resolved('driver') then
  return reply('driver_unknown')
elseif who[4] and who[4] ~= from_zone then
  return reply('driver_elsewhere')
elseif (who[2] or '') ~= trip_id then
  return reply('driver_moved', who[2] or '')
elseif redis.call('EXISTS', driver_claim) == 1 or trip_holder then
  return reply('trip_busy')
end
local released = {}
if trip_id ~= '' then
  local state = redis.call('HMGET', trip, 'current_status', 'version', 'driver_id')
  local status, version = state[1], state[2]
  if not status then
    return reply('trip_unknown')
  elseif state[3] ~= string.match(entry, '%S+$') then
    return reply('driver_unknown')  -- it is another driver's: Postgres knows what this one has
  elseif changes_zone or (vehicle_type ~= '' and vehicle_type ~= who[3]) then
    if fingerprint ~= '' and not is_resolved('key') then
      return reply('key_unresolved')  -- it may have its answer already, in a zone that the driver has left since
    end
    return refuse('driver_has_active_trip', version, status, true)
  elseif goes_offline and (status == 'accepted' or status == 'arrived') then
    released = redis.call('HGETALL', trip)
  end
end

redis.call('SET', driver_claim, token, 'NX', 'PX', lease_ms)
if #released > 0 then
  redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms)
end
--- @include "grant"
return reply('claimed', redis.call('HGETALL', driver), released)
