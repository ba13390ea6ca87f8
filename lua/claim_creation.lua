-- Purpose: lets one request go on to create a trip of this id.
-- Atomic because: two requests with one id, or one key, that each looked first would both go on.
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
-- ARGV[5] what is resolved already, as words: key (Postgres was asked), limits (were counted)
-- ARGV[6] entry for KEYS[3]
-- ARGV[7...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, index of the limit to report, remaining, reset in ms, …}, where … is
--   claimed: nothing; replay: the record; trip_exists: -, -
--   cold, key_unresolved, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
local trip, trip_claim = KEYS[4], KEYS[5]
local FIRST_LIMIT, FIRST_RATE = 6, 7
--- @include "claim"
if trip_holder then
  return reply('trip_busy')
elseif redis.call('EXISTS', trip) == 1 then
  -- Neither state nor version is told: the id may be another customer's.
  return refuse('trip_exists', '-', '-', true)
end
redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms)
--- @include "grant"
return reply('claimed')
