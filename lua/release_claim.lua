-- Purpose: lets go of the claims of an attempt that came to nothing, and of its idempotency lease; what the limits
--   counted for it is given back.
-- Atomic because: compare and delete; a claim that has expired may be another attempt's by now.
-- KEYS[1] claim on the trip
-- KEYS[2] claim on the driver
-- KEYS[3] claims by the end of their lease
-- KEYS[4] idempotency record (any key of the zone where none was leased)
-- KEYS[5...] logs of the limits that are to give back what they counted
-- ARGV[1] token of the attempt
-- ARGV[2] entry in KEYS[3]
-- ARGV[3] 1 where an idempotency lease is to be dropped
-- ARGV[4] lease in ms, as it was claimed with
-- RETURNS how many claims were dropped
local trip_claim, driver_claim, claims, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, entry, leased, lease_ms = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local FIRST_LIMIT = 5

local dropped = 0
if redis.call('GET', trip_claim) == token then
  dropped = dropped + redis.call('DEL', trip_claim)
end
if redis.call('GET', driver_claim) == token then
  dropped = dropped + redis.call('DEL', driver_claim)
end
local lease_end_ms = redis.call('ZSCORE', claims, entry)
if lease_end_ms then
  local admitted_us = string.format('%.0f', (tonumber(lease_end_ms) - lease_ms) * 1000)
  for k = FIRST_LIMIT, #KEYS do
    redis.call('LREM', KEYS[k], -1, admitted_us)
  end
end
redis.call('ZREM', claims, entry)
if leased then
  local stored = redis.call('GET', record)
  if stored and string.match(stored, '^L %x+ %d+ (.+)$') == token then
    redis.call('DEL', record)
  end
end
return dropped
