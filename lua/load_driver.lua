-- Purpose: puts a driver's availability read from Postgres into the live picture, unless the picture is as new.
-- Atomic because: versions are compared and the hash is written together; a settle in between must not be undone.
-- KEYS[1] driver
-- KEYS[2] geo set of the driver's vehicle type
-- ARGV[1] version in Postgres
-- ARGV[2] driver id
-- ARGV[3...] field-value pairs of the driver; trip_id is not one of them: trips bring their driver along
-- RETURNS 1 where it was written, 0 where the picture was as new
local driver, geo = KEYS[1], KEYS[2]
local version, driver_id = tonumber(ARGV[1]), ARGV[2]

local known = redis.call('HGET', driver, 'version')
if known and tonumber(known) >= version then
  return 0
end
redis.call('HSET', driver, unpack(ARGV, 3))
if redis.call('HGET', driver, 'is_online') ~= '1' then
  redis.call('ZREM', geo, driver_id)
end
return 1
