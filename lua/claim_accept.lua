-- Purpose: lets at most one driver go on to commit an accept; every loser is answered here.
-- Atomic because: the trip's state, the driver's state and both claims are decided on together; two drivers
--   who looked first and claimed later could both win, and one driver could win two trips.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] claims by the end of their lease
-- KEYS[4] trip
-- KEYS[5] driver
-- KEYS[6] claim on the trip
-- KEYS[7] claim on the driver
-- KEYS[8] offers of the trip
-- KEYS[9...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what is resolved already, as words: key, trip, driver, change (Postgres was asked), limits (were counted)
-- ARGV[6] entry for KEYS[3]
-- ARGV[7] expected version, or empty
-- ARGV[8] driver id
-- ARGV[9] accept policy: open or offered
-- ARGV[10...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, index of the limit to report, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash, the driver's vehicle type, drivers who hold an offer
--   replay: the record; refusals: version and state of the trip
--   cold, key_unresolved, trip_unknown, driver_unknown, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
local trip, driver, trip_claim, driver_claim, offers = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local expected, driver_id, policy = ARGV[7], ARGV[8], ARGV[9]
local FIRST_LIMIT, FIRST_RATE = 9, 10
--- @include "claim"

if is_about_to_change and not is_resolved('change') then
  return reply('trip_busy')  -- whatever its state says here: it is asked again, and Postgres in the end
end
local state = redis.call('HMGET', trip, 'current_status', 'version')
local status, version = state[1], state[2]
if not status then
  return is_resolved('trip') and refuse('trip_not_found', '-', '-', false) or reply('trip_unknown')
end
if status == 'accepted' or status == 'arrived' or status == 'ongoing' then
  return refuse('trip_already_assigned', version, status, true)
elseif status ~= 'pending' then
  return refuse('trip_not_pending', version, status, true)
elseif expected ~= '' and expected ~= version then
  return refuse('version_conflict', version, status, true)
end

--- @include "eligibility"
local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'vehicle_type')
if not who[1] and not is_resolved('driver') then
  return reply('driver_unknown')
elseif who[1] ~= '1' then
  return refuse('driver_not_online', version, status, true)
elseif not is_free(who[1], who[2], who[3]) then
  return refuse('driver_not_available', version, status, true)
elseif policy == 'offered' and tonumber(redis.call('ZSCORE', offers, driver_id) or 0) <= now_ms then
  return refuse('not_offered', version, status, false)
elseif is_about_to_change then
  return reply('trip_busy')  -- not another driver's: it may come to nothing
elseif not redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms) then
  -- Kept, though that claim may yet come to nothing: one key has one answer. A new try takes a new key.
  return refuse('trip_already_assigned', version, status, true)
elseif not redis.call('SET', driver_claim, token, 'NX', 'PX', lease_ms) then
  redis.call('DEL', trip_claim)
  return refuse('driver_not_available', version, status, true)
end
--- @include "grant"
return reply('claimed', redis.call('HGETALL', trip), who[4] or '', redis.call('ZRANGE', offers, 0, -1))
