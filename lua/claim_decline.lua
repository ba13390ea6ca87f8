-- Purpose: lets a driver go on to decline a pending trip. The trip itself is not claimed: declines hinder nobody.
-- Atomic because: of two requests with one key, only one may go on.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] claims by the end of their lease
-- KEYS[4] trip
-- KEYS[5] claim on the trip
-- KEYS[6...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what is resolved already, as words: key, trip, change (Postgres was asked), limits (were counted)
-- ARGV[6] entry for KEYS[3]
-- ARGV[7] expected version, or empty
-- ARGV[8...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, index of the limit to report, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash; replay: the record; refusals: version and state of the trip
--   cold, key_unresolved, trip_unknown, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
local trip, trip_claim = KEYS[4], KEYS[5]
local expected = ARGV[7]
local FIRST_LIMIT, FIRST_RATE = 6, 8
--- @include "claim"

if is_about_to_change and not is_resolved('change') then
  return reply('trip_busy')
end
local state = redis.call('HMGET', trip, 'current_status', 'version')
local status, version = state[1], state[2]
if not status then
  return is_resolved('trip') and refuse('trip_not_found', '-', '-', false) or reply('trip_unknown')
elseif status == 'accepted' or status == 'arrived' or status == 'ongoing' then
  return refuse('trip_already_assigned', version, status, true)
elseif status ~= 'pending' then
  return refuse('trip_not_pending', version, status, true)
elseif expected ~= '' and expected ~= version then
  return refuse('version_conflict', version, status, true)
end
--- @include "grant"
return reply('claimed', redis.call('HGETALL', trip))
