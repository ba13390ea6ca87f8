-- Purpose: says of one driver and one trip what each filter of the trip's next wave says; changes nothing.
--   redis-cli --eval lua/inspect/why.lua 'dsp:{ZONE}:trip:TRIP' 'dsp:{ZONE}:driver:DRIVER'
--   A file of its own for a plain redis-cli: the libraries are copied in, and a test holds them to lua/lib/.
-- Atomic because: a driver who is taken or moves in between would seem to be kept by nothing, or by two things.
-- KEYS[1] trip
-- KEYS[2] driver; all other keys are those of their zone, so they share its slot
-- ARGV[1] oldest fix that counts, in ms before now; optional, as all that follows: what is not given is as the server says that
--   does the zone's rounds (lua/take_zone.lua), or where there is none, as by default
-- ARGV[2] most open offers a driver may hold
-- ARGV[3] candidates that are looked at for each offer of a wave
-- ARGV[4] candidates that are looked at beyond those
-- ARGV[5] queue at whose place the pickup is, or empty: as the trip's last wave found it
-- ARGV[6...] the zone's waves, as pairs: most drivers who may hold an offer, radius in m
-- RETURNS a row a filter, in the order in which they are asked: {filter, named by what it keeps back; yes (it lets the driver through), no, or - (it
--   cannot be asked, or decides later: round_of_matching, where the trip takes part in one), what it saw}. The last row is {verdict, the filters that say no or would_be_offered, a sentence}
--- @copy "clock"
-- Redis' own clock: one clock for all servers of a zone.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- tostring() would round a number of this size to 14 digits.
local function whole(number)
  return string.format('%.0f', number)
end
--- @end
--- @copy "driver_state"
-- What the hash of a driver says of them, value by value.

local function works(is_online)
  return is_online == '1'
end

local function wants_trips(availability_status)
  return availability_status == 'available'
end

local function has_trip(trip_id)
  return (trip_id or '') ~= ''
end
--- @end
--- @copy "freshness"
-- How old a driver's last position is. Needs clock.lua. The values are those of the driver's hash.

local function has_fix(fix_ms)
  return fix_ms and true or false
end

local function is_fresh(fix_ms, fix_age_ms)
  return (fix_ms and tonumber(fix_ms) > now_ms - fix_age_ms) or false
end
--- @end
--- @copy "queues"
-- A driver's place in a queue. Needs clock.lua. The values are those of the driver's hash: `queue` is its name, or empty,
-- `queue_until` when (ms) the place is lost unless the driver is seen there before.

-- A place that ends far ahead, since the clock stepped back, is one: number_queue.lua brings its end near.
local function holds_place(queue, queue_until)
  local until_ms = tonumber(queue_until or '') or 0
  return string.find(queue or '', '^[a-z0-9-]+$') ~= nil and until_ms > now_ms
end
--- @end
--- @copy "candidates"
-- What stands between a driver near a pickup and an offer of its trip: a wave offers to whom no filter refuses, and an
-- explanation shows what each filter says. Needs clock.lua, driver_state.lua, freshness.lua and queues.lua. What the
-- filters judge:
--   driver: is_online, availability_status, trip_id, fix_ms, vehicle_type, queue, queue_until as in the hash;
--     presence_ends_ms (0: none); is_barred, has_passed; offered_until_ms (of this trip; 0: never); open_offers; is_asked
--     where a queue asks them for another trip just now
--   wave: vehicle_type, fix_age_ms, max_open_offers; ask_again where drivers who let it pass may be asked again; queue
--     (nil: none) where who is asked is asked for their place in it

-- A filter is {what it keeps back: a code of dispatcher/core/obstacles.py; whether it lets the driver through; whether
-- who is refused has no place in the geo set}.
local CANDIDATE_FILTERS = {
  { 'offline', function(driver) return works(driver.is_online) end, true },
  { 'unavailable', function(driver) return wants_trips(driver.availability_status) end, true },
  { 'active_trip', function(driver) return not has_trip(driver.trip_id) end, true },
  { 'other_vehicle_type', function(driver, wave) return driver.vehicle_type == wave.vehicle_type end, true },
  { 'no_position', function(driver) return has_fix(driver.fix_ms) end },
  { 'stale_position', function(driver, wave) return is_fresh(driver.fix_ms, wave.fix_age_ms) end },
  { 'not_present', function(driver) return driver.presence_ends_ms > now_ms end },
  { 'barred', function(driver) return not driver.is_barred end },
  { 'passed', function(driver, wave) return wave.ask_again or not driver.has_passed end },
  { 'on_offer', function(driver) return driver.offered_until_ms <= now_ms end },
  -- Offers from elsewhere cost nobody their turn in a queue, which asks for one trip at a time.
  { 'enough_offers', function(driver, wave) return wave.queue or driver.open_offers < wave.max_open_offers end },
  { 'not_in_queue', function(driver, wave)
    return not wave.queue or driver.queue == wave.queue and holds_place(driver.queue, driver.queue_until)
  end },
  { 'asked_in_queue', function(driver, wave) return not (wave.queue and driver.is_asked) end },
}

-- The first filter that refuses a driver, or nil.
local function first_obstacle(driver, wave)
  for _, filter in ipairs(CANDIDATE_FILTERS) do
    if not filter[2](driver, wave) then
      return filter
    end
  end
  return nil
end
--- @end
--- @copy "distance"
-- Metres between two places in degrees, on the sphere that GEOSEARCH measures on.
local function distance_m(lng, lat, other_lng, other_lat)
  local EARTH_M = 6372797.560856
  local u = math.sin(math.rad(other_lat - lat) / 2)
  local v = math.sin(math.rad(other_lng - lng) / 2)
  return 2 * EARTH_M * math.asin(math.sqrt(u * u + math.cos(math.rad(lat)) * math.cos(math.rad(other_lat)) * v * v))
end
--- @end
local trip, driver = KEYS[1], KEYS[2]
local candidates_per_offer, more_candidates = tonumber(ARGV[3] or 6), tonumber(ARGV[4] or 10)
local queue = ARGV[5] or ''
local FIRST_WAVE = 6

local prefix, trip_id = string.match(trip or '', '^(dsp:{[^}]+}:)trip:(.+)$')
local prefix_of_driver, driver_id = string.match(driver or '', '^(dsp:{[^}]+}:)driver:(.+)$')
if not prefix or prefix ~= prefix_of_driver then
  return redis.error_reply('ERR the keys are dsp:{ZONE}:trip:TRIP and dsp:{ZONE}:driver:DRIVER, of one zone')
end
-- Oldest fix, most open offers, and a pair a wave: those of the zone's holder, else the defaults.
local DEFAULTS = '60000 3 3 1500 5 3000 8 6000 12 12000 12 12000 12 12000 12 12000'
local function numbers_of(text)
  local numbers = {}
  for word in string.gmatch(text, '%S+') do
    numbers[#numbers + 1] = tonumber(word)
  end
  return numbers
end
local told = numbers_of(redis.call('HGET', prefix .. 'holder', 'waves') or '')
if #told < 4 or #told % 2 == 1 then
  told = numbers_of(DEFAULTS)
end
local fix_age_ms, max_open_offers = tonumber(ARGV[1] or told[1]), tonumber(ARGV[2] or told[2])
local waves = {}
for i = FIRST_WAVE, #ARGV - 1, 2 do
  waves[#waves + 1] = { tonumber(ARGV[i]), tonumber(ARGV[i + 1]) }
end
for i = 3, #waves == 0 and #told - 1 or 0, 2 do
  waves[#waves + 1] = { told[i], told[i + 1] }
end

local rows, refusing = {}, {}
local function tell(filter, passes, saw)
  rows[#rows + 1] = { filter, passes == nil and '-' or passes and 'yes' or 'no', saw }
  if passes == false then
    refusing[#refusing + 1] = filter
  end
end

local function seconds(ms)
  return string.format('%.1f s', ms / 1000)
end

local function km(metres)
  return string.format('%.1f km', metres / 1000)
end

-- The trip, and which wave comes next.
local state = redis.call('HMGET', trip, 'current_status', 'round', 'vehicle_type', 'pickup_lng', 'pickup_lat', 'driver_id',
  'queue', 'head_start')
queue = queue ~= '' and queue or state[7] or ''
local status, round, vehicle_type = state[1], tonumber(state[2] or 0), state[3]
tell('trip_not_pending', status == 'pending', status
  and 'the trip is ' .. status .. ((state[6] or '') ~= '' and ' with driver ' .. state[6] or '')
  or 'the trip is not in Redis: Postgres knows what became of it')
local number = math.min(round + 1, #waves)
local size, radius_m = waves[number][1], waves[number][2]
tell('trip_claimed', redis.call('EXISTS', prefix .. 'claim:trip:' .. trip_id) == 0,
  redis.call('EXISTS', prefix .. 'claim:trip:' .. trip_id) == 1 and 'somebody is changing the trip right now'
  or 'nobody is changing the trip right now')

-- A trip that a round has decided on, or put off, is due with the next round.
local next_round_ms = tonumber(redis.call('HGET', prefix .. 'matching', 'next_ms') or 0)
local is_in_round = next_round_ms > now_ms
  and tonumber(redis.call('ZSCORE', prefix .. 'waves', trip_id) or 0) == next_round_ms
-- After a round's head start the wave goes on as far as the round looked.
if is_in_round or (state[8] or '') ~= '' and state[8] == (state[2] or '0') then
  for _, wave in ipairs(waves) do
    radius_m = math.max(radius_m, wave[2])
  end
end
if is_in_round then
  tell('round_of_matching', nil, 'the round of matching in ' .. seconds(next_round_ms - now_ms) .. ' chooses who is asked first')
end

local offers, barred, passed = prefix .. 'offers:' .. trip_id, prefix .. 'barred:' .. trip_id, prefix .. 'passed:' .. trip_id
local geo = prefix .. 'geo:' .. (vehicle_type or '')
local let_pass = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', offers, '-inf', whole(now_ms))) do
  let_pass[name] = true
end
local filters = {
  vehicle_type = vehicle_type, fix_age_ms = fix_age_ms, max_open_offers = max_open_offers, ask_again = round + 1 >= #waves,
}

local function candidate(id)
  local who = redis.call('HMGET', prefix .. 'driver:' .. id, 'is_online', 'availability_status', 'trip_id', 'fix_ms',
    'vehicle_type', 'zone', 'lng', 'lat', 'queue', 'queue_until', 'queue_trip')
  local inbox, asked_for = prefix .. 'inbox:' .. id, who[11] or ''
  return {
    is_online = who[1], availability_status = who[2], trip_id = who[3], fix_ms = who[4], vehicle_type = who[5],
    zone = who[6], lng = who[7], lat = who[8], queue = who[9], queue_until = who[10],
    presence_ends_ms = tonumber(redis.call('ZSCORE', prefix .. 'present', 'driver:' .. id) or 0),
    is_barred = redis.call('SISMEMBER', barred, id) == 1,
    has_passed = let_pass[id] or redis.call('SISMEMBER', passed, id) == 1,
    offered_until_ms = tonumber(redis.call('ZSCORE', offers, id) or 0),
    open_offers = redis.call('ZCOUNT', inbox, '(' .. whole(now_ms), '+inf'),
    is_asked = asked_for ~= '' and asked_for ~= trip_id and tonumber(redis.call('ZSCORE', inbox, asked_for) or 0) > now_ms,
  }
end

-- The queue is asked first, in the order of arrival, and then whoever is near.
local line = queue ~= '' and redis.call('ZRANGE', prefix .. 'queue:' .. queue .. ':' .. (vehicle_type or ''), 0, -1) or {}
local function stands_in_line(who)
  return queue ~= '' and who.queue == queue and holds_place(who.queue, who.queue_until)
end
local position = nil
for i, id in ipairs(line) do
  position = id == driver_id and i or position
end

-- What each of the shared filters saw, in words.
local SAW = {
  offline = function(who)
    if not who.is_online then
      return 'the driver is not known in this zone'
    end
    return works(who.is_online) and 'online' or 'offline in this zone' .. (who.zone and ', works in ' .. who.zone or '')
  end,
  unavailable = function(who) return who.availability_status or 'unknown' end,
  active_trip = function(who) return has_trip(who.trip_id) and 'on trip ' .. who.trip_id or 'on no trip' end,
  other_vehicle_type = function(who) return (who.vehicle_type or 'none') .. ' for a trip that asks for ' .. (vehicle_type or '?') end,
  no_position = function(who) return has_fix(who.fix_ms) and 'has a position' or 'no position yet' end,
  stale_position = function(who)
    return has_fix(who.fix_ms) and string.format('fix %s old, %s at most', seconds(now_ms - who.fix_ms), seconds(fix_age_ms))
      or 'there is no fix to be old'
  end,
  not_present = function(who)
    if who.presence_ends_ms == 0 then
      return 'no connection'
    end
    return who.presence_ends_ms > now_ms and 'present for ' .. seconds(who.presence_ends_ms - now_ms) .. ' more'
      or 'gone for ' .. seconds(now_ms - who.presence_ends_ms)
  end,
  barred = function(who) return who.is_barred and 'declined the trip or gave it back' or 'has neither declined it nor given it back' end,
  passed = function(who)
    return (who.has_passed and 'let an offer of the trip pass' or 'has let no offer of it pass')
      .. (filters.ask_again and '; the widest wave asks again' or '')
  end,
  on_offer = function(who)
    return who.offered_until_ms > now_ms and 'holds an offer of the trip for ' .. seconds(who.offered_until_ms - now_ms) .. ' more'
      or 'holds no offer of the trip'
  end,
  enough_offers = function(who) return string.format('has %d open offers, %d at most', who.open_offers, max_open_offers) end,
  not_in_queue = function(who)
    if queue == '' then
      return 'the pickup is at no queue'
    end
    if position and stands_in_line(who) then
      return string.format('number %d of %d in the queue %s', position, #line, queue)
    end
    return string.format('not in the queue %s, whose %d drivers are asked first', queue, #line)
  end,
  asked_in_queue = function(who)
    return who.is_asked and 'is asked for another trip at the queue' or 'is asked for no other trip at a queue'
  end,
}
local function first_obstacle_in_line(who)
  filters.queue = stands_in_line(who) and queue or nil
  return first_obstacle(who, filters)
end
local who = candidate(driver_id)
filters.queue = stands_in_line(who) and queue or nil
local cannot_be_asked = {
  other_vehicle_type = not vehicle_type,
  stale_position = not has_fix(who.fix_ms),
}
for _, filter in ipairs(CANDIDATE_FILTERS) do
  local passes = nil
  if not cannot_be_asked[filter[1]] then
    passes = filter[2](who, filters)
  end
  tell(filter[1], passes, SAW[filter[1]](who))
end

-- Whether the wave looks as far as the driver is, and whether nearer ones leave them a place.
local open = redis.call('ZCOUNT', offers, '(' .. whole(now_ms), '+inf')
local found, rank, ahead = nil, nil, 0
if status then
  found = redis.call('GEOSEARCH', geo, 'FROMLONLAT', state[4], state[5], 'BYRADIUS', radius_m, 'm', 'ASC', 'COUNT',
    size * candidates_per_offer + more_candidates)
  local is_counted = {}
  for i, id in ipairs(line) do
    local other = candidate(id)
    if id == driver_id and stands_in_line(other) then
      rank = i
      break
    end
    if open + ahead < size and stands_in_line(other) and not first_obstacle_in_line(other) then
      ahead, is_counted[id] = ahead + 1, true
    end
  end
  filters.queue = nil
  for i, id in ipairs(rank and {} or found) do
    if id == driver_id then
      rank = i
      break
    end
    if open + ahead < size and not is_counted[id] and not first_obstacle(candidate(id), filters) then
      ahead = ahead + 1
    end
  end
end
local wave = is_in_round and string.format('the round reaches %s', km(radius_m))
  or string.format('wave %d reaches %s', number, km(radius_m))
local away_m = status and who.lat and distance_m(state[4], state[5], who.lng, who.lat)
if position and stands_in_line(who) then
  tell('out_of_reach', true, (away_m and km(away_m) .. ' away, ' or '') .. 'and the queue is asked however far')
  tell('not_among_nearest', true, 'the queue is asked by arrival and not by distance')
elseif not away_m then
  tell('out_of_reach', nil, 'there is no distance to compare; ' .. wave)
else
  tell('out_of_reach', away_m <= radius_m, km(away_m) .. ' away, ' .. wave)
  if is_in_round and away_m <= radius_m then
    tell('not_among_nearest', nil, 'a round looks at all drivers in reach')
  elseif rank then
    tell('not_among_nearest', true, string.format('number %d of the %d who were found', rank, #found))
  elseif away_m <= radius_m then
    tell('not_among_nearest', false, redis.call('ZSCORE', geo, driver_id) and string.format('the %d nearest are looked at', #found)
      or 'not in the geo set of the vehicle type: the next position brings them there')
  else
    tell('not_among_nearest', nil, 'out of reach')
  end
end
local saw = string.format('%d of %d offers are out, %d go to %s drivers', open, size, ahead,
  queue == '' and 'nearer' or 'earlier')
if is_in_round then
  tell('no_place_left', nil, saw)
else
  tell('no_place_left', open + ahead < size, saw)
end

if #refusing == 0 then
  rows[#rows + 1] = { 'verdict', 'would_be_offered', is_in_round and 'the next round of matching may choose this driver'
    or 'the next wave would offer the trip to this driver' }
else
  rows[#rows + 1] = { 'verdict', table.concat(refusing, ' '), 'no offer: ' .. table.concat(refusing, ', ') }
end
return rows
