-- Purpose: tells the live state what Postgres has committed, and lets go of the claims.
-- Atomic because: a reader must never see a trip taken whose driver is still on offer, or a claim gone before the
--   trip's new state stands.
-- KEYS[1] claims by the end of their lease
-- KEYS[2] times of the drivers' last fixes
-- KEYS[3] stream of events
-- KEYS[4] what the channels of the zone's users begin with; an address (role:id) follows
-- KEYS[5] trips by the time of their next wave
-- KEYS[6] offers in a row that drivers turned down
-- KEYS[7] channel that wakes who does the rounds of the zone
-- KEYS[8...] for each change, none of which shares its trip or driver with another: trip, driver, claim on the
--   trip, claim on the driver, idempotency record, geo set of the driver's vehicle type, offers of the trip, drivers
--   barred from these, the driver's inbox, then the inboxes of the drivers who hold one. Any key of the zone stands for
--   what there is not.
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2...] for each change: a record (JSON), and texts that are long, so that they are not packed into it: the
--   idempotency record to keep, an event (JSON) for the stream, and the messages (JSON), one for each list in the
--   record's `to`; a text that does not apply is empty, and a field of the record that does not apply is left out:
--   token, entry: the attempt, and its entry in KEYS[1]; inboxes: how many of its keys are inboxes
--   answer_ttl_ms: the life of the idempotency record
--   to: for each message, the addresses (role:id) that it goes to
--   trip_id: the trip that changes, or whose offer is declined
--   trip: {version, base_version, ttl_s, wave, fields}: its new version; the version that the fields are the changes
--     of (absent: they are the whole trip); the life of its hash (absent: it is live); wave is start (now) or stop;
--     fields are its field-value pairs in a row
--   driver_id, effect: the driver that changes, and how: take (the trip), free (of it) or state (new availability);
--     a trip without a hash takes nobody who has another: it is told late, and is over since
--   driver: {version, fields}: the driver's new availability, as the trip's
--   barred_driver: may not have the trip from now on
-- RETURNS for each change 1 where the trip's hash was older and was written, 0 where it was not; -1 where the hash is
--   not of the base version: nothing was done, the whole trip is needed; or the text of an error, which left the
--   change half done and its claims to their lease. Where a driver who is not free any more held offers of other
--   trips, they are told of their withdrawal, and a list stands for the number: the number, now in ms, then those trips
--- @include "clock"
--- @include "eligibility"
--- @include "freshness"
--- @include "driver_state"
--- @include "gone"
local claims, seen, events, channels, waves = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local turned_down, wake = KEYS[6], KEYS[7]
local fix_age_ms = tonumber(ARGV[1])
local FIRST_KEY, FIRST_RECORD = 8, 2
local KEYS_EACH, ARGS_EACH = 9, 3
local EVENTS_KEPT = 100000
local BARRED_S = 86400

-- Done for all changes in one call each.
local gone, stopped, forgiven = {}, {}, {}
local held, owners, entries = {}, {}, {}
local is_wave_due = false

local function update_driver(driver, geo, change, is_newer)
  local before = redis.call('HMGET', driver, 'vehicle_type', 'is_online', 'availability_status', 'trip_id')
  local vehicle_type = before[1]
  if change.driver then
    local version = redis.call('HGET', driver, 'version')
    if not version or tonumber(version) < change.driver.version then
      redis.call('HSET', driver, unpack(change.driver.fields))
    end
    redis.call('PERSIST', driver)
  end
  if is_newer and change.effect == 'free' and redis.call('HGET', driver, 'trip_id') == change.trip_id then
    redis.call('HSET', driver, 'trip_id', '')
  end
  local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'lat', 'lng', 'fix_ms',
    'vehicle_type')
  if is_free(who[1], who[2], who[3]) and not is_free(before[2], before[3], before[4]) then
    -- A place in a queue is for who stays free: it is lost in between.
    redis.call('HSET', driver, 'free_since', whole(now_ms), 'queue', '')
  end
  -- With another vehicle the driver leaves the old one's geo set here, and joins the new one's with the next fix.
  local is_same_vehicle = not vehicle_type or vehicle_type == who[7]
  if is_free(who[1], who[2], who[3]) and is_same_vehicle and is_fresh(who[6], fix_age_ms) then
    redis.call('GEOADD', geo, who[5], who[4], change.driver_id)
    redis.call('ZADD', seen, who[6], change.driver_id)
  else
    redis.call('ZREM', geo, change.driver_id)
    if who[1] ~= '1' then
      redis.call('ZREM', seen, change.driver_id)
      forgiven[#forgiven + 1] = change.driver_id
    end
    if is_gone(who[1], who[3]) then
      redis.call('EXPIRE', driver, GONE_S)
    end
  end
  return is_free(who[1], who[2], who[3])
end

-- Empties the inbox of a driver who is not free any more. Returns the trips that were on offer beside this one.
local function withdraw_offers(inbox, change)
  local others = {}
  for _, trip_id in ipairs(redis.call('ZRANGE', inbox, 0, -1)) do
    if trip_id ~= change.trip_id then
      others[#others + 1] = trip_id
      redis.call('SPUBLISH', channels .. 'driver:' .. change.driver_id,
        '{"type":"offer_withdrawn","trip_request_id":"' .. trip_id .. '","reason":"driver_not_available"}')
    end
  end
  if #others > 0 then
    gone[#gone + 1] = inbox
  end
  return others
end

local function settle(k, a, change)
  local answer, event = ARGV[a + 1], ARGV[a + 2]
  local trip, driver, trip_claim, driver_claim = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  local record, geo, offers, barred = KEYS[k + 4], KEYS[k + 5], KEYS[k + 6], KEYS[k + 7]
  local inbox = KEYS[k + 8]
  local first_inbox, last_inbox = k + KEYS_EACH, k + KEYS_EACH + change.inboxes - 1

  local after = change.trip
  local known = after and redis.call('HGET', trip, 'version')
  local is_newer = after and (not known or tonumber(known) < after.version)
  if is_newer and after.base_version and tonumber(known or -1) ~= after.base_version then
    return -1
  end

  if is_newer then
    redis.call('HSET', trip, unpack(after.fields))
    if after.ttl_s then
      redis.call('EXPIRE', trip, after.ttl_s)
      gone[#gone + 1] = barred
    end
    if after.wave == 'start' then
      redis.call('HSET', trip, 'round', 0, 'head_start', '', 'waiting_since', whole(now_ms))
      redis.call('ZADD', waves, whole(now_ms), change.trip_id)
      is_wave_due = true
    else
      stopped[#stopped + 1] = change.trip_id
      for i = first_inbox, last_inbox do
        redis.call('ZREM', KEYS[i], change.trip_id)
      end
      gone[#gone + 1] = offers
    end
  end
  if change.barred_driver then
    redis.call('SADD', barred, change.barred_driver)
    redis.call('EXPIRE', barred, BARRED_S)
    if not after then
      -- An offer was declined: that makes room, and the last one makes the next wave due.
      for i = first_inbox, last_inbox do
        redis.call('ZREM', KEYS[i], change.trip_id)
      end
      if redis.call('ZREM', offers, change.barred_driver) == 1 then
        redis.call('HINCRBY', turned_down, change.barred_driver, 1)
        if redis.call('ZCOUNT', offers, whole(now_ms), '+inf') == 0 then
          redis.call('ZADD', waves, 'XX', whole(now_ms), change.trip_id)
          is_wave_due = true
        end
      end
    end
  end
  local others = {}
  if change.driver_id and is_newer and change.effect == 'take' then
    local has = not known and redis.call('HGET', driver, 'trip_id')
    if not has or has == '' then
      redis.call('HSET', driver, 'trip_id', change.trip_id)
    end
    redis.call('ZREM', geo, change.driver_id)
    forgiven[#forgiven + 1] = change.driver_id
    others = withdraw_offers(inbox, change)
  elseif change.driver_id and not update_driver(driver, geo, change, is_newer) then
    others = withdraw_offers(inbox, change)
  end
  if answer ~= '' then
    redis.call('SET', record, answer, 'PX', change.answer_ttl_ms)
  end
  if event ~= '' then
    redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event)
  end
  for m, addresses in ipairs(change.to or {}) do
    for _, address in ipairs(addresses) do
      redis.call('SPUBLISH', channels .. address, ARGV[a + ARGS_EACH - 1 + m])
    end
  end
  held[#held + 1], owners[#owners + 1] = trip_claim, change.token
  held[#held + 1], owners[#owners + 1] = driver_claim, change.token
  entries[#entries + 1] = change.entry
  local result = is_newer and 1 or 0
  return #others > 0 and { result, now_ms, unpack(others) } or result
end

local results = {}
local k, a = FIRST_KEY, FIRST_RECORD
while a <= #ARGV do
  local change = cjson.decode(ARGV[a])
  local is_done, result = pcall(settle, k, a, change)
  results[#results + 1] = is_done and result or type(result) == 'table' and result.err or tostring(result)
  k = k + KEYS_EACH + change.inboxes
  a = a + ARGS_EACH + #(change.to or {})
end
if #stopped > 0 then
  redis.call('ZREM', waves, unpack(stopped))
end
if #forgiven > 0 then
  redis.call('HDEL', turned_down, unpack(forgiven))
end
if is_wave_due then
  redis.call('SPUBLISH', wake, '')
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
