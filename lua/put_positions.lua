-- Purpose: takes the newest fix of each of several drivers of one vehicle type.
-- Atomic because: the newest fix wins, and only a driver who may be offered a trip now is in the geo set: hash,
--   set and time must not part; and who arrives at a queue stands behind all who have.
-- KEYS[1] epoch of the zone
-- KEYS[2] geo set of the vehicle type
-- KEYS[3] times of the drivers' last fixes
-- KEYS[4] vehicle types that have a geo set
-- KEYS[5...] for each fix: driver, then the logs of the limits that apply, then, where the zone has queues, the one at
--   whose place the fix is (the driver's own key: at none's)
-- ARGV[1] oldest fix that counts, in ms before now
-- ARGV[2] vehicle type
-- ARGV[3] how many limits apply to each fix, n
-- ARGV[4] 1 where the zone has queues, or 0
-- ARGV[5...] n pairs for the limits (most admitted, window in s), then for each fix: driver id, latitude, longitude,
--   time of the fix in ms, or empty: now; then, where the zone has queues, the name of the one at whose place the fix is,
--   or empty, and how long who is absent keeps their place there, in ms
-- RETURNS {code, now in ms, a result a fix}: code is taken or cold; a result is {code, detail,
--   index of the limit to report, remaining, reset in ms, time of the fix in ms, the queue at whose place the driver is
--   and holds a place, or empty, and when they arrived in ms}, with the codes taken (and the driver's trip or empty),
--   late, unknown, offline, other_vehicle (and the right one) and rate_limited; a fix of any code but the last has been
--   counted
--- @include "clock"
--- @include "limits"
--- @include "eligibility"
--- @include "freshness"
--- @include "queues"
local epoch, geo, seen, vehicles = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fix_age_ms, vehicle_type, limits, queues = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local FIRST_DRIVER, FIRST_PAIR = 5, 5

-- A free driver, the one at KEYS[k], is seen at a queue's place. Returns when they arrived in ms, or nil while they hold a
-- place elsewhere.
local function stand_in_line(k, driver_id, name, absence_ms, fix_ms)
  local driver, queue = KEYS[k], KEYS[k + limits + 1]
  local held = redis.call('HMGET', driver, 'queue', 'queue_until', 'queued_at')
  local arrived_ms = held[3]
  if not (holds_place(held[1], held[2]) and tonumber(arrived_ms or '')) then
    -- Behind whoever is there, whatever the clock did meanwhile: no two arrive at once.
    local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
    arrived_ms = whole(math.max(now_ms, (tonumber(last[2]) or 0) + 1))
    redis.call('HSET', driver, 'queue', name, 'queued_at', arrived_ms, 'queue_number', '')
  elseif held[1] ~= name then
    return nil
  end
  redis.call('HSET', driver, 'queue_until', whole(fix_ms + absence_ms))
  redis.call('ZADD', queue, arrived_ms, driver_id)
  return tonumber(arrived_ms)
end

if redis.call('EXISTS', epoch) == 0 then
  return { 'cold', now_ms, {} }
end
redis.call('SADD', vehicles, vehicle_type)
local results = {}
local g = FIRST_PAIR + 2 * limits
for k = FIRST_DRIVER, #KEYS, 1 + limits + queues do
  local is_refused, limit_index, remaining, reset_ms = check_limits(k + 1, FIRST_PAIR, k + limits)
  local code, detail = 'rate_limited', ''
  local queue, queued_ms = '', 0
  -- A clock that runs ahead must not shut out every later fix.
  local fix_ms = math.min(tonumber(ARGV[g + 3]) or now_ms, now_ms)
  if not is_refused then
    remaining = record_admission(k + 1, FIRST_PAIR, remaining, k + limits)
    local driver_id, lat, lng = ARGV[g], ARGV[g + 1], ARGV[g + 2]
    local who = redis.call('HMGET', KEYS[k], 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'fix_ms')
    local known_ms = tonumber(who[5]) or 0
    code, detail = 'taken', who[3] or ''
    if not who[1] then
      code = 'unknown'
    elseif who[1] ~= '1' then
      code = 'offline'
    elseif who[4] ~= vehicle_type then
      code, detail = 'other_vehicle', who[4]
    elseif known_ms <= now_ms and (known_ms > fix_ms or known_ms == fix_ms and ARGV[g + 3] ~= '') then
      -- Of several that are measured now, the last stands; one that lies ahead is of a clock that stepped back.
      code = 'late'
    else
      redis.call('HSET', KEYS[k], 'lat', lat, 'lng', lng, 'fix_ms', whole(fix_ms))
      redis.call('ZADD', seen, whole(fix_ms), driver_id)
      if is_free(who[1], who[2], who[3]) and is_fresh(fix_ms, fix_age_ms) then
        redis.call('GEOADD', geo, lng, lat, driver_id)
        if queues > 0 and ARGV[g + 4] ~= '' then
          queued_ms = stand_in_line(k, driver_id, ARGV[g + 4], tonumber(ARGV[g + 5]), fix_ms)
          queue, queued_ms = queued_ms and ARGV[g + 4] or '', queued_ms or 0
        end
      else
        redis.call('ZREM', geo, driver_id)
      end
    end
  end
  results[#results + 1] = { code, detail, limit_index, remaining, reset_ms, fix_ms, queue, queued_ms }
  g = g + 4 + 2 * queues
end
return { 'taken', now_ms, results }
