-- Purpose: puts a trip read from Postgres into the live state, unless that is as new.
-- Atomic because: version, hash and the driver's side of the bond are compared and written together; a settle in
--   between must not be undone by an older row.
-- KEYS[1] trip
-- KEYS[2] driver of the trip as Postgres has it (the trip's own key where there is none)
-- KEYS[3] driver of the trip as the live state had it (the trip's own key where there is none)
-- KEYS[4] trips by the time of their next wave
-- ARGV[1] version in Postgres
-- ARGV[2] trip id
-- ARGV[3] life of the hash in s, or empty: as long as the trip is live
-- ARGV[4] 1 where KEYS[2] holds a driver with this as their active trip
-- ARGV[5] 1 where the trip waits for a driver
-- ARGV[6...] field-value pairs of the trip
-- RETURNS 1 where it was written, 0 where the live state was as new
--- @include "clock"
local trip, driver, former, waves = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local version, trip_id, ttl_s = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local is_bound, is_waiting = ARGV[4] == '1', ARGV[5] == '1'

local known = redis.call('HGET', trip, 'version')
if known and tonumber(known) >= version then
  return 0
end
redis.call('HSET', trip, unpack(ARGV, 6))
if ttl_s ~= '' then
  redis.call('EXPIRE', trip, ttl_s)
else
  redis.call('PERSIST', trip)
end
if former ~= trip and redis.call('HGET', former, 'trip_id') == trip_id then
  redis.call('HSET', former, 'trip_id', '')
end
if is_bound then
  redis.call('HSET', driver, 'trip_id', trip_id)
end
if is_waiting then
  redis.call('ZADD', waves, 'NX', whole(now_ms), trip_id)
else
  redis.call('ZREM', waves, trip_id)
end
return 1
