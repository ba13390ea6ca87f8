-- Purpose: lets at most one change of a trip that exists go on to its commit: arrive, start, complete, cancel,
--   release, expire.
-- Atomic because: state, version, owner and claim are decided on together; a cancel and a start that each looked
--   first could otherwise both go on.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] trip
-- KEYS[4] claim on the trip
-- KEYS[5] claims by the end of their lease
-- KEYS[6] offers of the trip
-- KEYS[7...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what Postgres was asked already: letters of k (key), t (trip), l (limits were counted)
-- ARGV[6] entry for KEYS[5]
-- ARGV[7] expected version, or empty
-- ARGV[8] actor's role: driver, customer, admin or system
-- ARGV[9] actor's id
-- ARGV[10] states the trip may be in, each with a comma on both sides: ,accepted,arrived,
-- ARGV[11...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, limit's place, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash, drivers who hold an offer; replay: the record
--   refusals: version and state of the trip; cold, key_unresolved, trip_unknown: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
--- @include "gate"
local epoch, record, trip, trip_claim, claims, offers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, lease_ms, fingerprint, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local resolved, entry, expected = ARGV[5], ARGV[6], ARGV[7]
local role, actor, sources = ARGV[8], ARGV[9], ARGV[10]
local FIRST_LIMIT, FIRST_PAIR = 7, 11

local reply, counted, place, remaining, reset_ms = gate(epoch, record, fingerprint, resolved, FIRST_LIMIT, FIRST_PAIR)
if reply then
  return reply
end

local state = redis.call('HMGET', trip, 'current_status', 'version', 'driver_id', 'customer_id')
if not state[1] and not string.find(resolved, 't', 1, true) then
  return { 'trip_unknown', now_ms, place, remaining, reset_ms }
end
local code, kept = 'claimed', true
if not state[1] or (role == 'driver' and state[3] ~= actor) or (role == 'customer' and state[4] ~= actor) then
  code, kept = 'trip_not_found', false
elseif not string.find(sources, ',' .. state[1] .. ',', 1, true) then
  code = 'invalid_trip_status'
elseif expected ~= '' and expected ~= state[2] then
  code = 'version_conflict'
elseif redis.call('EXISTS', trip_claim) == 1 then
  -- Not written, not counted: the caller waits for the other change and asks again.
  return { 'trip_busy', now_ms, place, remaining, reset_ms }
end

if not counted then
  remaining = record_admission(FIRST_LIMIT, FIRST_PAIR, remaining)
end
if code ~= 'claimed' then
  local hidden = code == 'trip_not_found'
  local version, status = hidden and '-' or state[2], hidden and '-' or state[1]
  if kept then
    keep_refusal(record, fingerprint, ttl_ms, code, version, status)
  end
  return { code, now_ms, place, remaining, reset_ms, version, status }
end
redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms)
redis.call('ZADD', claims, whole(now_ms + lease_ms), entry)
lease_key(record, fingerprint, ttl_ms, now_ms + lease_ms, token)
return {
  code, now_ms, place, remaining, reset_ms,
  redis.call('HGETALL', trip), redis.call('ZRANGE', offers, 0, -1),
}
