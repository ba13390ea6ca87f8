-- Purpose: tells the live picture what Postgres has committed, and lets go of the claims.
-- Atomic because: a reader must never see a trip taken whose driver is still on offer, or a claim gone before the
--   trip's new state stands.
-- KEYS[1] trip (any key of the zone where ARGV[5] is empty)
-- KEYS[2] driver (any key of the zone where ARGV[9] is empty)
-- KEYS[3] claim on the trip
-- KEYS[4] claim on the driver
-- KEYS[5] claims by the end of their lease
-- KEYS[6] idempotency record
-- KEYS[7] geo set of the driver's vehicle type
-- KEYS[8] times of the drivers' last fixes
-- KEYS[9] stream of events
-- KEYS[10] push channel of the zone
-- KEYS[11] offers of the trip
-- KEYS[12] trips by the time of their next wave
-- KEYS[13] drivers barred from the trip's offers
-- KEYS[14...] inboxes of the drivers who hold an offer of the trip
-- ARGV[1] token of the attempt
-- ARGV[2] entry in KEYS[5]
-- ARGV[3] idempotency record to keep, or empty
-- ARGV[4] its life in ms
-- ARGV[5] the trip's new version, or empty: no trip changes
-- ARGV[6] life of the trip's hash in s, or empty: as long as the trip is live
-- ARGV[7] trip id, or empty
-- ARGV[8] next wave: start (now), stop or empty
-- ARGV[9] driver id, or empty: no driver changes
-- ARGV[10] what becomes of the driver: take (the trip), free (of it), state (new availability) or empty
-- ARGV[11] driver who is barred from now on, or empty
-- ARGV[12] oldest fix that counts, in ms before now
-- ARGV[13] event for the stream (JSON), or empty
-- ARGV[14] message for the push channel (JSON), or empty
-- ARGV[15] version the trip's pairs are the changes of, or empty: they are the whole trip
-- ARGV[16] how many driver fields follow, n
-- ARGV[17...] n field-value pairs of the driver, then the trip's pairs
-- RETURNS 1 where the trip's hash was older and was written, 0 where it was not; -1 where the hash is not of the
--   version in ARGV[15]: nothing was done, the whole trip is needed
--- @include "clock"
local trip, driver, trip_claim, driver_claim, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local record, geo, seen, events, channel = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local offers, waves, barred = KEYS[11], KEYS[12], KEYS[13]
local token, entry, answer, answer_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local version, trip_ttl_s, trip_id, wave = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local driver_id, effect, bars, fix_age_ms = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12])
local event, message, base, driver_fields = ARGV[13], ARGV[14], ARGV[15], tonumber(ARGV[16])
local FIRST_INBOX, FIRST_FIELD = 14, 17
local EVENTS_KEPT = 100000
local BARRED_S = 86400

local known = version ~= '' and redis.call('HGET', trip, 'version')
local newer = version ~= '' and (not known or tonumber(known) < tonumber(version))
if newer and base ~= '' and known ~= base then
  return -1
end

if newer then
  redis.call('HSET', trip, unpack(ARGV, FIRST_FIELD + 2 * driver_fields))
  if trip_ttl_s ~= '' then
    redis.call('EXPIRE', trip, trip_ttl_s)
    redis.call('DEL', barred)
  end
  if wave == 'start' then
    redis.call('HSET', trip, 'reach', 0, 'waiting_since', whole(now_ms))
    redis.call('ZADD', waves, whole(now_ms), trip_id)
  elseif wave == 'stop' then
    redis.call('ZREM', waves, trip_id)
    for k = FIRST_INBOX, #KEYS do
      redis.call('ZREM', KEYS[k], trip_id)
    end
    redis.call('DEL', offers)
  end
end
if bars ~= '' then
  redis.call('SADD', barred, bars)
  redis.call('EXPIRE', barred, BARRED_S)
  if version == '' then
    -- An offer was declined: that makes room, and the last one makes the next wave due.
    for k = FIRST_INBOX, #KEYS do
      redis.call('ZREM', KEYS[k], trip_id)
    end
    if redis.call('ZREM', offers, bars) == 1 and redis.call('ZCOUNT', offers, whole(now_ms), '+inf') == 0 then
      redis.call('ZADD', waves, 'XX', whole(now_ms), trip_id)
    end
  end
end

if driver_id ~= '' and newer and effect == 'take' then
  redis.call('HSET', driver, 'trip_id', trip_id)
  redis.call('ZREM', geo, driver_id)
elseif driver_id ~= '' then
  local vehicle = redis.call('HGET', driver, 'vehicle_type')
  if driver_fields > 0 then
    local before = redis.call('HGET', driver, 'version')
    local after
    for i = FIRST_FIELD, FIRST_FIELD + 2 * driver_fields - 1, 2 do
      if ARGV[i] == 'version' then
        after = tonumber(ARGV[i + 1])
      end
    end
    if not before or tonumber(before) < after then
      redis.call('HSET', driver, unpack(ARGV, FIRST_FIELD, FIRST_FIELD + 2 * driver_fields - 1))
    end
  end
  if newer and effect == 'free' and redis.call('HGET', driver, 'trip_id') == trip_id then
    redis.call('HSET', driver, 'trip_id', '')
  end
  local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'lat', 'lng', 'fix_ms',
    'vehicle_type')
  -- With another vehicle the driver leaves the old one's geo set here, and joins the new one's with the next fix.
  local same_vehicle = not vehicle or vehicle == who[7]
  if who[1] == '1' and who[2] == 'available' and (who[3] or '') == '' and same_vehicle and who[6]
      and tonumber(who[6]) > now_ms - fix_age_ms then
    redis.call('GEOADD', geo, who[5], who[4], driver_id)
    redis.call('ZADD', seen, who[6], driver_id)
  else
    redis.call('ZREM', geo, driver_id)
    if who[1] ~= '1' then
      redis.call('ZREM', seen, driver_id)
    end
  end
end

if answer ~= '' then
  redis.call('SET', record, answer, 'PX', answer_ttl_ms)
end
if event ~= '' then
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event)
end
if message ~= '' then
  redis.call('SPUBLISH', channel, message)
end
local held = redis.call('MGET', trip_claim, driver_claim)
if held[1] == token then
  redis.call('DEL', trip_claim)
end
if held[2] == token then
  redis.call('DEL', driver_claim)
end
redis.call('ZREM', claims, entry)
return newer and 1 or 0
