-- Purpose: runs one wave of a trip: shows it to the first drivers who may have it, until a deadline.
-- Atomic because: the filters and the offers are one decision; a driver who is taken, leaves or declines in between
--   must not get an offer, and no driver more than their share.
-- KEYS[1] trip
-- KEYS[2] claim on the trip
-- KEYS[3] offers of the trip
-- KEYS[4] drivers barred from the trip
-- KEYS[5] drivers who let an offer of the trip pass
-- KEYS[6] trips by the time of their next wave
-- KEYS[7] users of the zone by the end of their presence
-- KEYS[8] what the channels of the zone's users begin with; an address (role:id) follows
-- KEYS[9] geo set of the vehicle type
-- KEYS[10] matching of the zone
-- KEYS[11] offers in a row that drivers turned down
-- KEYS[12] who does the rounds of the zone
-- KEYS[13...] for each candidate, in the order of asking: driver, then inbox
-- ARGV[1] trip id
-- ARGV[2] round this wave was planned for: how often drivers were looked for before
-- ARGV[3] most drivers who may hold an offer of this trip
-- ARGV[4] time to answer, in ms
-- ARGV[5] time until the next look in ms, where nobody could be found, unless a round of matching planned this: the
--   trip then takes part in the next one
-- ARGV[6] most open offers a driver may hold
-- ARGV[7] oldest fix that counts, in ms before now
-- ARGV[8] longest time a trip waits for a driver, in ms; what lies further ahead is of a clock that stepped back, and over
-- ARGV[9] 1 where drivers who let it pass may be asked again
-- ARGV[10] the trip as JSON, for the frames
-- ARGV[11] vehicle type that is asked for
-- ARGV[12] fence of the round of matching that planned this, or empty
-- ARGV[13] head start in ms: the first driver alone is asked, and the wave goes on after it; 0: the whole wave is asked
-- ARGV[14] queue at whose place the pickup is, or empty
-- ARGV[15] how many candidates, the first ones, are asked for their place in it; where one of them holds an offer already,
--   their head start is over
-- ARGV[16] fence by which the caller holds the zone, or empty
-- ARGV[17] reach of that round in m, or empty: who has moved out of it since they were looked at is passed over
-- ARGV[18...] pairs: driver id, distance in m
-- RETURNS {code, now in ms, wave, deadline in ms, drivers offered to, drivers whose offer has expired, how many of the
--   drivers offered to hold offers of other trips}; the last one where code is offered
--   code is offered, nobody (found), exhausted (its time is over), or moved (not this wave's turn, or not this server's, any more)
--- @include "clock"
--- @include "fence"
--- @include "driver_state"
--- @include "freshness"
--- @include "queues"
--- @include "candidates"
--- @include "distance"
local trip, claim, offers, barred, passed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local waves, present, channels, geo = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local matching, turned_down, holder = KEYS[10], KEYS[11], KEYS[12]
local trip_id, round, size, answer_ms, again_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local max_open_offers, fix_age_ms, max_wait_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local ask_again, trip_json, vehicle_type = ARGV[9] == '1', ARGV[10], ARGV[11]
local fence, head_start_ms, queue, queued = ARGV[12], tonumber(ARGV[13]), ARGV[14], tonumber(ARGV[15])
local zone_fence, reach_m = ARGV[16], tonumber(ARGV[17])
local OFFERS, FIRST_CANDIDATE, FIRST_PAIR = 3, 13, 18

if not is_held(holder, zone_fence) then
  return { 'moved', now_ms, 0, 0, {}, {} }
end

local state = redis.call('HMGET', trip, 'current_status', 'round', 'wave', 'waiting_since', 'pickup_lng', 'pickup_lat')
if state[1] ~= 'pending' then
  redis.call('ZREM', waves, trip_id)
  return { 'moved', now_ms, 0, 0, {}, {} }
end
local planned = fence ~= '' and redis.call('HMGET', matching, 'fence', 'next_ms') or {}
if (state[2] or '0') ~= round or redis.call('EXISTS', claim) == 1 or fence ~= '' and planned[1] ~= fence then
  return { 'moved', now_ms, 0, 0, {}, {} }
end
local latest_ms = now_ms + max_wait_ms

-- Of the offers of the trip, or of a driver's inbox: where they stand in KEYS.
local function count_open(k)
  return redis.call('ZCOUNT', KEYS[k], '(' .. whole(now_ms), whole(latest_ms))
end

-- Whether a driver, whose inbox is at this place in KEYS, holds an offer of a trip.
local function is_open(k, id)
  local until_ms = (id or '') ~= '' and tonumber(redis.call('ZSCORE', KEYS[k], id)) or 0
  return until_ms > now_ms and until_ms <= latest_ms
end

-- Whether a driver at this place is out of the round's reach. A metre more: the round measured along the chord.
local function is_away(lng, lat)
  local from_lng, from_lat, to_lng, to_lat = tonumber(state[5] or ''), tonumber(state[6] or ''), tonumber(lng or ''), tonumber(lat or '')
  return not (from_lng and from_lat and to_lng and to_lat) or distance_m(from_lng, from_lat, to_lng, to_lat) > reach_m + 1
end

local function drop_ended(k)
  redis.call('ZREMRANGEBYSCORE', KEYS[k], '-inf', whole(now_ms))
  redis.call('ZREMRANGEBYSCORE', KEYS[k], '(' .. whole(latest_ms), '+inf')
end

local since = math.min(tonumber(state[4] or now_ms), now_ms)
local wave = tonumber(state[3] or '0') + 1
local expired = redis.call('ZRANGEBYSCORE', offers, '-inf', whole(now_ms))
for _, driver_id in ipairs(redis.call('ZRANGEBYSCORE', offers, '(' .. whole(latest_ms), '+inf')) do
  expired[#expired + 1] = driver_id
end
local open = count_open(OFFERS)
if open == 0 and now_ms - since >= max_wait_ms then
  drop_ended(OFFERS)
  return { 'exhausted', now_ms, wave - 1, 0, {}, expired }
end

if head_start_ms > 0 and open > 0 and fence ~= '' then
  return { 'moved', now_ms, 0, 0, {}, {} }
end
local is_head_start = head_start_ms > 0 and open == 0
if is_head_start then
  size = 1
end
local let_pass = {}
for _, driver_id in ipairs(expired) do
  let_pass[driver_id] = true
end
local filters = {
  vehicle_type = vehicle_type, fix_age_ms = fix_age_ms, max_open_offers = max_open_offers, ask_again = ask_again,
}
local chosen, shared, deadline = {}, 0, now_ms + answer_ms
for k = FIRST_CANDIDATE, #KEYS, 2 do
  if open + #chosen >= size then
    break
  end
  local i = FIRST_PAIR + (k - FIRST_CANDIDATE)
  local driver_id = ARGV[i]
  local who = redis.call('HMGET', KEYS[k], 'is_online', 'availability_status', 'trip_id', 'fix_ms', 'vehicle_type',
    'queue', 'queue_until', 'queue_trip', 'lng', 'lat')
  filters.queue = k < FIRST_CANDIDATE + 2 * queued and queue or nil
  local offered_until_ms = tonumber(redis.call('ZSCORE', offers, driver_id) or 0)
  local open_offers = count_open(k + 1)
  local obstacle = first_obstacle({
    is_online = who[1], availability_status = who[2], trip_id = who[3], fix_ms = who[4], vehicle_type = who[5],
    queue = who[6], queue_until = who[7], is_asked = filters.queue and is_open(k + 1, who[8]),
    presence_ends_ms = tonumber(redis.call('ZSCORE', present, 'driver:' .. driver_id) or 0),
    is_barred = redis.call('SISMEMBER', barred, driver_id) == 1,
    has_passed = let_pass[driver_id] or redis.call('SISMEMBER', passed, driver_id) == 1,
    offered_until_ms = offered_until_ms > latest_ms and 0 or offered_until_ms,
    open_offers = open_offers,
  }, filters)
  if not obstacle and not (reach_m and is_away(who[9], who[10])) then
    chosen[#chosen + 1] = { driver_id, k + 1, ARGV[i + 1] }
    shared = shared + (open_offers > 0 and 1 or 0)
    if filters.queue then
      redis.call('HSET', KEYS[k], 'queue_trip', trip_id)
    end
  elseif obstacle and obstacle[3] then
    redis.call('ZREM', geo, driver_id)  -- whatever was lost that should have taken them out
  end
end

drop_ended(OFFERS)
for _, driver_id in ipairs(expired) do
  redis.call('SADD', passed, driver_id)
  redis.call('HINCRBY', turned_down, driver_id, 1)
  redis.call('EXPIRE', passed, 3600)
end
is_head_start = is_head_start and #chosen > 0
-- After a head start the same wave goes on: it is still the same round.
redis.call('HSET', trip, 'round', tonumber(round) + (is_head_start and 0 or 1), 'waiting_since', whole(since))
if is_head_start and fence ~= '' then
  redis.call('HSET', trip, 'head_start', round)  -- whoever declines it, the wave goes on, and no round is waited for
end
if queue ~= '' then
  redis.call('HSET', trip, 'queue', queue)  -- for who asks why
end
if #chosen == 0 then
  redis.call('ZADD', waves, planned[2] or whole(now_ms + again_ms), trip_id)
  return { 'nobody', now_ms, wave - 1, 0, {}, expired }
end
if not is_head_start then
  redis.call('HSET', trip, 'wave', wave)
end
local names = {}
for _, choice in ipairs(chosen) do
  local driver_id, inbox, distance_m = choice[1], KEYS[choice[2]], choice[3]
  redis.call('ZADD', offers, whole(deadline), driver_id)
  drop_ended(choice[2])
  redis.call('ZADD', inbox, whole(deadline), trip_id)
  redis.call('PEXPIRE', inbox, answer_ms + 1000, 'GT')
  if redis.call('PTTL', inbox) < 0 then
    redis.call('PEXPIRE', inbox, answer_ms + 1000)
  end
  redis.call('SPUBLISH', channels .. 'driver:' .. driver_id, '{"type":"offer","trip":' .. trip_json
    .. ',"wave":' .. wave .. ',"distance_m":' .. distance_m .. ',"deadline_ms":' .. whole(deadline)
    .. ',"expires_in_ms":' .. answer_ms .. '}')
  names[#names + 1] = driver_id
end
redis.call('ZADD', waves, whole(is_head_start and math.min(deadline, now_ms + head_start_ms) or deadline), trip_id)
return { 'offered', now_ms, wave, deadline, names, expired, shared }
