-- Purpose: lets a driver go on to decline a pending trip. The trip itself is not claimed: declines hinder nobody.
-- Atomic because: of two requests with one key, only one may go on.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] trip
-- KEYS[4] claims by the end of their lease
-- KEYS[5...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what Postgres was asked already: letters of k (key), t (trip), l (limits were counted)
-- ARGV[6] entry for KEYS[4]
-- ARGV[7] expected version, or empty
-- ARGV[8...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, limit's place, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash; replay: the record; refusals: version and state of the trip
--   cold, key_unresolved, trip_unknown: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
--- @include "gate"
local epoch, record, trip, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, lease_ms, fingerprint, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local resolved, entry, expected = ARGV[5], ARGV[6], ARGV[7]
local FIRST_LIMIT, FIRST_PAIR = 5, 8

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
return { code, now_ms, place, remaining, reset_ms, redis.call('HGETALL', trip) }
