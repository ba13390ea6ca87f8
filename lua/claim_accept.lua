-- Purpose: lets at most one driver go on to commit an accept; every loser is answered here.
-- Atomic because: the trip's state, the driver's state and both claims are decided on together; two drivers
--   who looked first and claimed later could both win, and one driver could win two trips.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] trip
-- KEYS[4] driver
-- KEYS[5] claim on the trip
-- KEYS[6] claim on the driver
-- KEYS[7] claims by the end of their lease
-- KEYS[8] offers of the trip
-- KEYS[9...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what Postgres was asked already: letters of k (key), t (trip), d (driver), l (limits were counted)
-- ARGV[6] entry for KEYS[7]
-- ARGV[7] expected version, or empty
-- ARGV[8] driver id
-- ARGV[9] accept policy: open or offered
-- ARGV[10...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, limit's place, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash, the driver's vehicle type, drivers who hold an offer
--   replay: the record; refusals: version and state of the trip
--   cold, key_unresolved, trip_unknown, driver_unknown: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
--- @include "gate"
local epoch, record, trip, driver = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local trip_claim, driver_claim, claims, offers = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, lease_ms, fingerprint, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local resolved, entry, expected, driver_id, policy = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local FIRST_LIMIT, FIRST_PAIR = 9, 10

local reply, counted, place, remaining, reset_ms = gate(epoch, record, fingerprint, resolved, FIRST_LIMIT, FIRST_PAIR)
if reply then
  return reply
end

local state = redis.call('HMGET', trip, 'current_status', 'version')
if not state[1] and not string.find(resolved, 't', 1, true) then
  return { 'trip_unknown', now_ms, place, remaining, reset_ms }
end
local code, kept = 'claimed', true
if not state[1] then
  code, kept = 'trip_not_found', false
elseif state[1] == 'accepted' or state[1] == 'arrived' or state[1] == 'ongoing' then
  code = 'trip_already_assigned'
elseif state[1] ~= 'pending' then
  code = 'trip_not_pending'
elseif expected ~= '' and expected ~= state[2] then
  code = 'version_conflict'
end
local vehicle_type = ''
if code == 'claimed' then
  local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'vehicle_type')
  if not who[1] and not string.find(resolved, 'd', 1, true) then
    return { 'driver_unknown', now_ms, place, remaining, reset_ms }
  end
  vehicle_type = who[4] or ''
  if who[1] ~= '1' then
    code = 'driver_not_online'
  elseif who[2] ~= 'available' or (who[3] and who[3] ~= '') then
    code = 'driver_not_available'
  elseif policy == 'offered' and (tonumber(redis.call('ZSCORE', offers, driver_id) or 0) <= now_ms) then
    code, kept = 'not_offered', false
  elseif not redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms) then
    -- Kept, though that claim may yet come to nothing: one key has one answer. A new try takes a new key.
    code = 'trip_already_assigned'
  elseif not redis.call('SET', driver_claim, token, 'NX', 'PX', lease_ms) then
    redis.call('DEL', trip_claim)
    code = 'driver_not_available'
  end
end

if not counted then
  remaining = record_admission(FIRST_LIMIT, FIRST_PAIR, remaining)
end
if code ~= 'claimed' then
  local version, status = state[2] or '-', state[1] or '-'
  if kept then
    keep_refusal(record, fingerprint, ttl_ms, code, version, status)
  end
  return { code, now_ms, place, remaining, reset_ms, version, status }
end
redis.call('ZADD', claims, whole(now_ms + lease_ms), entry)
lease_key(record, fingerprint, ttl_ms, now_ms + lease_ms, token)
return {
  code, now_ms, place, remaining, reset_ms,
  redis.call('HGETALL', trip), vehicle_type, redis.call('ZRANGE', offers, 0, -1),
}
