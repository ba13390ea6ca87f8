-- Purpose: lets at most one change of a trip that exists go on to its commit: arrive, start, complete, cancel,
--   release, expire.
-- Atomic because: state, version, owner and claim are decided on together; a cancel and a start that each looked
--   first could otherwise both go on.
-- KEYS[1] epoch of the zone
-- KEYS[2] idempotency record (any key of the zone where ARGV[3] is empty)
-- KEYS[3] claims by the end of their lease
-- KEYS[4] trip
-- KEYS[5] claim on the trip
-- KEYS[6] offers of the trip
-- KEYS[7...] logs of the limits that apply
-- ARGV[1] token of this attempt
-- ARGV[2] lease in ms
-- ARGV[3] fingerprint of the request, or empty: no key was sent
-- ARGV[4] life of the idempotency record in ms
-- ARGV[5] what is resolved already, as words: key, trip (Postgres was asked), limits (were counted)
-- ARGV[6] entry for KEYS[3]
-- ARGV[7] expected version, or empty
-- ARGV[8] actor's role: driver, customer, admin or system
-- ARGV[9] actor's id
-- ARGV[10] states the trip may be in, each with a comma on both sides: ,accepted,arrived,
-- ARGV[11...] pairs for the limits: most admitted, window in s
-- RETURNS {code, now in ms, index of the limit to report, remaining, reset in ms, …}, where … is
--   claimed: trip as a flat hash, drivers who hold an offer; replay: the record
--   refusals: version and state of the trip; cold, key_unresolved, trip_unknown, trip_busy: nothing; nothing was written
--- @include "clock"
--- @include "limits"
--- @include "idempotency"
local trip, trip_claim, offers = KEYS[4], KEYS[5], KEYS[6]
local expected, role, actor, sources = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local FIRST_LIMIT, FIRST_RATE = 7, 11
--- @include "claim"
local state = redis.call('HMGET', trip, 'current_status', 'version', 'driver_id', 'customer_id')
local status, version = state[1], state[2]
if not status and not is_resolved('trip') then
  return reply('trip_unknown')
elseif not status or (role == 'driver' and state[3] ~= actor) or (role == 'customer' and state[4] ~= actor) then
  if trip_holder then
    return reply('trip_busy')  -- it may be theirs once the other change is settled
  end
  -- Neither state nor version is told: the trip is not theirs.
  return refuse('trip_not_found', '-', '-', false)
elseif not string.find(sources, ',' .. status .. ',', 1, true) then
  if trip_holder then
    return reply('trip_busy')
  end
  return refuse('invalid_trip_status', version, status, true)
elseif expected ~= '' and expected ~= version then
  return refuse('version_conflict', version, status, true)
elseif not redis.call('SET', trip_claim, token, 'NX', 'PX', lease_ms) then
  -- Not counted: the caller waits for the other change and asks again.
  return reply('trip_busy')
end
--- @include "grant"
return reply('claimed', redis.call('HGETALL', trip), redis.call('ZRANGE', offers, 0, -1))
