-- Purpose: puts a trip read from Postgres into the live state, unless that is as new, and makes its bond to its driver
--   and its place among the waves right in any case.
-- Atomic because: version, hash and the driver's side of the bond are compared and written together; a settle in
--   between must not be undone by an older row.
-- KEYS[1] trip
-- KEYS[2] driver of the trip as Postgres has it (the trip's own key where there is none)
-- KEYS[3] driver who may believe to have the trip (the trip's own key where there is none)
-- KEYS[4] trips by the time of their next wave
-- KEYS[5] offers of the trip
-- KEYS[6] drivers barred from the trip
-- KEYS[7] geo set of the vehicle type of the driver in KEYS[2] (of any type where there is none)
-- KEYS[8] channel that wakes who does the rounds of the zone
-- KEYS[9...] inboxes of the drivers who hold an offer of the trip
-- ARGV[1] version in Postgres
-- ARGV[2] trip id
-- ARGV[3] life of the hash in s, or empty: as long as the trip is live
-- ARGV[4] id of the driver in KEYS[2] where this is their active trip, or empty
-- ARGV[5] id of the driver in KEYS[3], or empty
-- ARGV[6] 1 where the trip waits for a driver
-- ARGV[7] number of the last wave that Postgres knows of, or 0
-- ARGV[8] how many drivers Postgres knows to be barred from the trip, n
-- ARGV[9...] the n drivers, then field-value pairs of the trip
-- RETURNS 1 where it was written, 0 where the live state was as new
--- @include "clock"
--- @include "driver_state"
--- @include "gone"
local trip, driver, former, waves, offers, barred = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local geo, wake = KEYS[7], KEYS[8]
local version, trip_id, ttl_s = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local driver_id, former_id, is_waiting = ARGV[4], ARGV[5], ARGV[6] == '1'
local last_wave, barred_count = tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST_INBOX, FIRST_BARRED = 9, 9
local BARRED_S = 86400

local known = redis.call('HMGET', trip, 'version', 'wave', 'current_status')
-- Half a hash is none, whatever its version: claims would ask for the trip again and again.
local is_newer = not known[1] or not known[3] or tonumber(known[1]) < version
if is_newer then
  redis.call('HSET', trip, unpack(ARGV, FIRST_BARRED + barred_count))
  if ttl_s ~= '' then
    redis.call('EXPIRE', trip, ttl_s)
  else
    redis.call('PERSIST', trip)
  end
  -- What was on offer belongs to the version before.
  for k = FIRST_INBOX, #KEYS do
    redis.call('ZREM', KEYS[k], trip_id)
  end
  redis.call('DEL', offers)
  if not is_waiting then
    redis.call('ZREM', waves, trip_id)
  else
    if last_wave > tonumber(known[2] or '0') then
      redis.call('HSET', trip, 'wave', last_wave)
    end
    if known[1] then
      -- It came back to waiting: its time begins anew.
      redis.call('HSET', trip, 'round', 0, 'head_start', '', 'waiting_since', whole(now_ms))
      redis.call('ZADD', waves, whole(now_ms), trip_id)
    end
  end
end
if is_waiting and barred_count > 0 then
  redis.call('SADD', barred, unpack(ARGV, FIRST_BARRED, FIRST_BARRED + barred_count - 1))
  redis.call('EXPIRE', barred, BARRED_S)
end

-- Who has the trip, or whether it waits, is what the hash says by now, be it from this row or from a newer settle.
local state = redis.call('HMGET', trip, 'current_status', 'driver_id')
if state[1] == 'pending' then
  redis.call('ZADD', waves, 'NX', whole(now_ms), trip_id)  -- without one it would wait for ever
  redis.call('SPUBLISH', wake, '')
end
local is_active = state[1] == 'accepted' or state[1] == 'arrived' or state[1] == 'ongoing'
local holder_id = is_active and state[2] or ''
if former_id ~= '' and former_id ~= holder_id and redis.call('HGET', former, 'trip_id') == trip_id then
  redis.call('HSET', former, 'trip_id', '', 'queue', '')
  if is_gone(redis.call('HGET', former, 'is_online'), '') then
    redis.call('EXPIRE', former, GONE_S)
  end
end
if driver_id ~= '' and driver_id == holder_id then
  redis.call('HSET', driver, 'trip_id', trip_id)
  redis.call('ZREM', geo, driver_id)  -- they were loaded before their trip, and seemed free
  redis.call('PERSIST', driver)  -- who has a trip is not gone, though they may be offline
end
return is_newer and 1 or 0
