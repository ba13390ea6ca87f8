-- Purpose: lets go of the claims of an attempt that came to nothing, and of its idempotency lease.
-- Atomic because: compare and delete; a claim that has expired may be another attempt's by now.
-- KEYS[1] claim on the trip
-- KEYS[2] claim on the driver
-- KEYS[3] claims by the end of their lease
-- KEYS[4] idempotency record (any key of the zone where none was leased)
-- ARGV[1] token of the attempt
-- ARGV[2] entry in KEYS[3]
-- ARGV[3] 1 where an idempotency lease is to be dropped
-- RETURNS how many claims were dropped
local trip_claim, driver_claim, claims, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, entry, leased = ARGV[1], ARGV[2], ARGV[3] == '1'

local dropped = 0
if redis.call('GET', trip_claim) == token then
  dropped = dropped + redis.call('DEL', trip_claim)
end
if redis.call('GET', driver_claim) == token then
  dropped = dropped + redis.call('DEL', driver_claim)
end
redis.call('ZREM', claims, entry)
if leased then
  local stored = redis.call('GET', record)
  if stored and string.match(stored, '^L %x+ %d+ (.+)$') == token then
    redis.call('DEL', record)
  end
end
return dropped
