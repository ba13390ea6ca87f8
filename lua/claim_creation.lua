-- Purpose: lets one request go on to create a trip of this id.
-- Atomic because: two requests with one id, or one key, that each looked first would both go on.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] trip
-- KEYS[4] claim on the trip
-- KEYS[5] claims by the end of their lease
-- KEYS[6...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what Postgres was asked already: letters of k (key), l (limits were counted)
-- ARGV[6] entry for KEYS[5]
-- ARGV[7...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, limit's place, remaining, reset in ms, …}, where … is
--   claimed: nothing; replay: the record; trip_exists: version and state of the trip
--   cold, key_unresolved, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
--- @include "gate"
local epoch, record, trip, trip_claim, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, lease_ms, fingerprint, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local resolved, entry = ARGV[5], ARGV[6]
local FIRST_LIMIT, FIRST_PAIR = 6, 7

local reply, counted, place, remaining, reset_ms = gate(epoch, record, fingerprint, resolved, FIRST_LIMIT, FIRST_PAIR)
if reply then
  return reply
end
if redis.call('EXISTS', trip_claim) == 1 then
  return { 'trip_busy', now_ms, place, remaining, reset_ms }
end
local exists = redis.call('EXISTS', trip) == 1

if not counted then
  remaining = record_admission(FIRST_LIMIT, FIRST_PAIR, remaining)
end
if exists then
  -- Neither state nor version is told: the id may be another customer's.
  keep_refusal(record, fingerprint, ttl_ms, 'trip_exists', '-', '-')
  return { 'trip_exists', now_ms, place, remaining, reset_ms, '-', '-' }
end
redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms)
redis.call('ZADD', claims, whole(now_ms + lease_ms), entry)
lease_key(record, fingerprint, ttl_ms, now_ms + lease_ms, token)
return { 'claimed', now_ms, place, remaining, reset_ms }
