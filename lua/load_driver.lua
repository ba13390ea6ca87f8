-- Purpose: puts a driver's availability read from Postgres into the live state, unless that is as new.
-- Atomic because: versions are compared and the hash is written together; a settle in between must not be undone.
-- KEYS[1] driver
-- KEYS[2] geo set of the driver's vehicle type
-- KEYS[3] times of the drivers' last fixes
-- KEYS[4] geo set of the vehicle type that the live state knew (KEYS[2] where it is the same, or none)
-- KEYS[5] queue that the driver stood in when Postgres was last told (KEYS[2] where it is none)
-- KEYS[6] vehicle types that have a geo set
-- ARGV[1] version in Postgres
-- ARGV[2] driver id
-- ARGV[3] latitude of the last fix, or empty: none is known
-- ARGV[4] longitude of the last fix, or empty
-- ARGV[5] time of the last fix in ms, or empty
-- ARGV[6] name of that queue, or empty
-- ARGV[7] when the driver arrived there, in ms
-- ARGV[8] how long who is absent keeps their place there, in ms
-- ARGV[9] vehicle type
-- ARGV[10...] field-value pairs of the driver; trip_id is not one of them: trips bring their driver along
-- RETURNS 1 where it was written, 0 where the live state was as new
--- @include "clock"
--- @include "eligibility"
--- @include "driver_state"
--- @include "gone"
local driver, geo, seen, former_geo, queue, vehicles = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local version, driver_id = tonumber(ARGV[1]), ARGV[2]
local lat, lng, fix_ms = ARGV[3], ARGV[4], ARGV[5]
local queue_name, queued_ms, absence_ms = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local vehicle_type = ARGV[9]
local FIRST_FIELD = 10

local known = redis.call('HMGET', driver, 'version', 'fix_ms', 'is_online')
-- Half a hash is none, whatever its version: claims would ask for the driver again and again.
if known[1] and known[3] and tonumber(known[1]) >= version then
  return 0
end
redis.call('HSET', driver, unpack(ARGV, FIRST_FIELD))
local state = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id')
local can_be_offered = is_free(state[1], state[2], state[3])
if former_geo ~= geo then
  redis.call('ZREM', former_geo, driver_id)
end
if not can_be_offered then
  redis.call('ZREM', geo, driver_id)
  redis.call('HSET', driver, 'queue', '')
elseif queue_name ~= '' and not known[1] then
  -- Who is absent since before Redis lost it has their whole absence again: when it began is not known.
  redis.call('HSET', driver, 'queue', queue_name, 'queued_at', whole(queued_ms), 'queue_until', whole(now_ms + absence_ms))
  redis.call('ZADD', queue, whole(queued_ms), driver_id)
end
if state[1] ~= '1' then
  redis.call('ZREM', seen, driver_id)
else
  redis.call('SADD', vehicles, vehicle_type)
  if fix_ms ~= '' and not known[2] then
    -- Where the driver was last: the next fix, the wave's own filters and the sweeper put right what is old by now.
    redis.call('HSET', driver, 'lat', lat, 'lng', lng, 'fix_ms', fix_ms)
    redis.call('ZADD', seen, fix_ms, driver_id)
    if can_be_offered then
      redis.call('GEOADD', geo, lng, lat, driver_id)
    end
  end
end
if is_gone(state[1], state[3]) then
  redis.call('EXPIRE', driver, GONE_S)
else
  redis.call('PERSIST', driver)
end
return 1
