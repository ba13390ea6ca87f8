-- Purpose: lets one change of a driver's availability go on to its commit, together with the release of a trip
--   that has not started where the driver goes offline.
-- Atomic because: the driver's trip, its state and both claims are decided on together; an accept in between
--   would leave an offline driver with a trip.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] driver
-- KEYS[4] claim on the driver
-- KEYS[5] claims by the end of their lease
-- KEYS[6] the driver's active trip (the driver's own key where there is none)
-- KEYS[7] claim on that trip (the driver's claim where there is none)
-- KEYS[8...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what Postgres was asked already: letters of k (key), d (driver), l (limits were counted)
-- ARGV[6] entry for KEYS[5]
-- ARGV[7] id of the trip in KEYS[6], or empty
-- ARGV[8] 1 where the driver goes offline
-- ARGV[9] 1 where the driver changes zone
-- ARGV[10] the new vehicle type, or empty: as it was
-- ARGV[11...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, limit's place, remaining, reset in ms, …}, where … is
--   claimed: driver as a flat hash, trip to release as a flat hash (empty where none is)
--   driver_moved: the id of the trip the driver has now; replay: the record; refusals: version and state
--   cold, key_unresolved, driver_unknown, trip_unknown, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
--- @include "gate"
local epoch, record, driver, driver_claim = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local claims, trip, trip_claim = KEYS[5], KEYS[6], KEYS[7]
local token, lease_ms, fingerprint, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local resolved, entry, trip_id = ARGV[5], ARGV[6], ARGV[7]
local goes_offline, changes_zone, vehicle_type = ARGV[8] == '1', ARGV[9] == '1', ARGV[10]
local FIRST_LIMIT, FIRST_PAIR = 8, 11

local reply, counted, place, remaining, reset_ms = gate(epoch, record, fingerprint, resolved, FIRST_LIMIT, FIRST_PAIR)
if reply then
  return reply
end

local who = redis.call('HMGET', driver, 'is_online', 'trip_id', 'vehicle_type')
if not who[1] and not string.find(resolved, 'd', 1, true) then
  return { 'driver_unknown', now_ms, place, remaining, reset_ms }
end
if (who[2] or '') ~= trip_id then
  return { 'driver_moved', now_ms, place, remaining, reset_ms, who[2] or '' }
end
if redis.call('EXISTS', driver_claim) == 1 or redis.call('EXISTS', trip_claim) == 1 then
  return { 'trip_busy', now_ms, place, remaining, reset_ms }
end
local released = {}
if trip_id ~= '' then
  local state = redis.call('HMGET', trip, 'current_status', 'version')
  if not state[1] then
    return { 'trip_unknown', now_ms, place, remaining, reset_ms }
  end
  if changes_zone or (vehicle_type ~= '' and vehicle_type ~= who[3]) then
    if not counted then
      remaining = record_admission(FIRST_LIMIT, FIRST_PAIR, remaining)
    end
    keep_refusal(record, fingerprint, ttl_ms, 'driver_has_active_trip', state[2], state[1])
    return { 'driver_has_active_trip', now_ms, place, remaining, reset_ms, state[2], state[1] }
  end
  if goes_offline and (state[1] == 'accepted' or state[1] == 'arrived') then
    released = redis.call('HGETALL', trip)
  end
end

if not counted then
  remaining = record_admission(FIRST_LIMIT, FIRST_PAIR, remaining)
end
redis.call('SET', driver_claim, token, 'NX', 'PX', lease_ms)
if #released > 0 then
  redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms)
end
redis.call('ZADD', claims, whole(now_ms + lease_ms), entry)
lease_key(record, fingerprint, ttl_ms, now_ms + lease_ms, token)
return { 'claimed', now_ms, place, remaining, reset_ms, redis.call('HGETALL', driver), released }
