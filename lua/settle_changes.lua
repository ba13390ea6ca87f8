-- Purpose: tells the live picture what Postgres has committed, and lets go of the claims.
-- Atomic because: a reader must never see a trip taken whose driver is still on offer, or a claim gone before the
--   trip's new state stands.
-- KEYS[1] claims by the end of their lease
-- KEYS[2] times of the drivers' last fixes
-- KEYS[3] stream of events
-- KEYS[4] push channel of the zone
-- KEYS[5] trips by the time of their next wave
-- KEYS[6...] for each change, none of which shares its trip or driver with another: trip, driver, claim on the
--   trip, claim on the driver, idempotency record, geo set of the driver's vehicle type, offers of the trip, drivers
--   barred from these, then the inboxes of the drivers who hold one. Any key of the zone stands for what there is not.
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2...] for each change: how many inboxes it has; how many driver fields and trip fields follow;
--   token of the attempt; entry in KEYS[1]; idempotency record to keep, or empty; its life in ms;
--   the trip's new version, or empty: no trip changes; version the trip's pairs are the changes of, or empty: they are the
--   whole trip; life of the trip's hash in s, or empty: as long as the trip is live; trip id, or empty;
--   next wave: start (now), stop or empty; driver id, or empty: no driver changes; what becomes of the driver:
--   take (the trip), free (of it), state (new availability) or empty; driver who is barred from now on, or empty;
--   event for the stream (JSON), or empty; messages for the push channel (JSON list), or empty;
--   then the field-value pairs of the driver, and those of the trip
-- RETURNS for each change 1 where the trip's hash was older and was written, 0 where it was not; -1 where the hash is
--   not of the version that the pairs change: nothing was done, the whole trip is needed; or the text of an error, which
--   left the change half done and its claims to their lease
--- @include "clock"
local claims, seen, events, channel, waves = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local fix_age_ms = tonumber(ARGV[1])
local FIRST_KEY, FIRST_ARG = 6, 2
local KEYS_EACH, ARGS_EACH = 8, 17
local EVENTS_KEPT = 100000
local BARRED_S = 86400

-- Done for all changes in one call each.
local gone, stopped, told = {}, {}, {}
local held, owners, entries = {}, {}, {}

local function place(driver, driver_id, geo, newer, effect, trip_id, first_field, fields)
  local vehicle = redis.call('HGET', driver, 'vehicle_type')
  if fields > 0 then
    local before = redis.call('HGET', driver, 'version')
    local after
    for i = first_field, first_field + 2 * fields - 1, 2 do
      if ARGV[i] == 'version' then
        after = tonumber(ARGV[i + 1])
      end
    end
    if not before or tonumber(before) < after then
      redis.call('HSET', driver, unpack(ARGV, first_field, first_field + 2 * fields - 1))
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

local function settle(k, a)
  local trip, driver, trip_claim, driver_claim = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  local record, geo, offers, barred = KEYS[k + 4], KEYS[k + 5], KEYS[k + 6], KEYS[k + 7]
  local first_inbox, last_inbox = k + KEYS_EACH, k + KEYS_EACH + tonumber(ARGV[a]) - 1
  local driver_fields, trip_fields = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local token, entry, answer, answer_ttl_ms = ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  local version, base, trip_ttl_s, trip_id = ARGV[a + 7], ARGV[a + 8], ARGV[a + 9], ARGV[a + 10]
  local wave, driver_id, effect, bars = ARGV[a + 11], ARGV[a + 12], ARGV[a + 13], ARGV[a + 14]
  local event, messages = ARGV[a + 15], ARGV[a + 16]
  local first_driver_field = a + ARGS_EACH
  local first_trip_field = first_driver_field + 2 * driver_fields

  local known = version ~= '' and redis.call('HGET', trip, 'version')
  local newer = version ~= '' and (not known or tonumber(known) < tonumber(version))
  if newer and base ~= '' and known ~= base then
    return -1
  end

  if newer then
    redis.call('HSET', trip, unpack(ARGV, first_trip_field, first_trip_field + 2 * trip_fields - 1))
    if trip_ttl_s ~= '' then
      redis.call('EXPIRE', trip, trip_ttl_s)
      gone[#gone + 1] = barred
    end
    if wave == 'start' then
      redis.call('HSET', trip, 'reach', 0, 'waiting_since', whole(now_ms))
      redis.call('ZADD', waves, whole(now_ms), trip_id)
    elseif wave == 'stop' then
      stopped[#stopped + 1] = trip_id
      for i = first_inbox, last_inbox do
        redis.call('ZREM', KEYS[i], trip_id)
      end
      gone[#gone + 1] = offers
    end
  end
  if bars ~= '' then
    redis.call('SADD', barred, bars)
    redis.call('EXPIRE', barred, BARRED_S)
    if version == '' then
      -- An offer was declined: that makes room, and the last one makes the next wave due.
      for i = first_inbox, last_inbox do
        redis.call('ZREM', KEYS[i], trip_id)
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
    place(driver, driver_id, geo, newer, effect, trip_id, first_driver_field, driver_fields)
  end
  if answer ~= '' then
    redis.call('SET', record, answer, 'PX', answer_ttl_ms)
  end
  if event ~= '' then
    redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event)
  end
  if #messages > 2 then
    told[#told + 1] = string.sub(messages, 2, -2)
  end
  held[#held + 1], owners[#owners + 1] = trip_claim, token
  held[#held + 1], owners[#owners + 1] = driver_claim, token
  entries[#entries + 1] = entry
  return newer and 1 or 0
end

local results = {}
local k, a = FIRST_KEY, FIRST_ARG
while k <= #KEYS do
  local ok, result = pcall(settle, k, a)
  results[#results + 1] = ok and result or type(result) == 'table' and result.err or tostring(result)
  a, k = a + ARGS_EACH + 2 * (tonumber(ARGV[a + 1]) + tonumber(ARGV[a + 2])), k + KEYS_EACH + tonumber(ARGV[a])
end
if #stopped > 0 then
  redis.call('ZREM', waves, unpack(stopped))
end
if #told > 0 then
  redis.call('SPUBLISH', channel, '[' .. table.concat(told, ',') .. ']')
end
if #held > 0 then
  for i, owner in ipairs(redis.call('MGET', unpack(held))) do
    if owner == owners[i] then
      gone[#gone + 1] = held[i]
    end
  end
  redis.call('ZREM', claims, unpack(entries))
end
if #gone > 0 then
  redis.call('DEL', unpack(gone))
end
return results
