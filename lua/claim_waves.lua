-- Purpose: hands out the trips whose next wave is due, each to one server at a time, while the zone is the caller's.
-- Atomic because: two servers that looked together would both run the same wave.
-- KEYS[1] trips by the time of their next wave
-- KEYS[2] matching of the zone
-- KEYS[3] who does the rounds of the zone
-- ARGV[1] most trips in one call
-- ARGV[2] time in ms after which a trip is handed out again, should this server fail
-- ARGV[3] longest time in ms until a wave: one that lies further ahead is of a clock that stepped back, and due
-- ARGV[4] fence of the caller, or empty
-- RETURNS {now in ms, when the next one is due in ms or 0, trip ids, the vehicle types of which drivers are scarce, 1 where
--   the zone is the caller's or 0}
--- @include "clock"
--- @include "fence"
local waves, matching, holder = KEYS[1], KEYS[2], KEYS[3]
local max_trips, again_ms, longest_ms, fence = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

if not is_held(holder, fence) then
  return { now_ms, 0, {}, {}, 0 }
end

local due = redis.call('ZRANGEBYSCORE', waves, '-inf', whole(now_ms), 'LIMIT', 0, max_trips)
local ahead = redis.call('ZRANGEBYSCORE', waves, '(' .. whole(now_ms + longest_ms), '+inf', 'LIMIT', 0, max_trips - #due)
for _, trip_id in ipairs(ahead) do
  due[#due + 1] = trip_id
end
for _, trip_id in ipairs(due) do
  redis.call('ZADD', waves, whole(now_ms + again_ms), trip_id)
end
local next_one = redis.call('ZRANGE', waves, 0, 0, 'WITHSCORES')
local scarce, PREFIX = {}, 'scarce_until_ms:'
local known = #due > 0 and redis.call('HGETALL', matching) or {}
for i = 1, #known, 2 do
  if known[i]:sub(1, #PREFIX) == PREFIX then
    local until_ms = tonumber(known[i + 1])
    -- What lies further ahead is of a clock that stepped back, and says nothing of now.
    if until_ms > now_ms and until_ms <= now_ms + longest_ms then
      scarce[#scarce + 1] = known[i]:sub(#PREFIX + 1)
    end
  end
end
return { now_ms, next_one[2] and tonumber(next_one[2]) or 0, due, scarce, 1 }
