-- Purpose: hands out the trips whose next wave is due, each to one server at a time.
-- Atomic because: two servers that looked together would both run the same wave.
-- KEYS[1] trips by the time of their next wave
-- ARGV[1] most trips in one call
-- ARGV[2] time in ms after which a trip is handed out again, should this server fail
-- ARGV[3] longest time in ms until a wave: one that lies further ahead is of a clock that stepped back, and due
-- RETURNS {now in ms, when the next one is due in ms or 0, trip ids}
--- @include "clock"
local waves = KEYS[1]
local max_trips, again_ms, longest_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local due = redis.call('ZRANGEBYSCORE', waves, '-inf', whole(now_ms), 'LIMIT', 0, max_trips)
local ahead = redis.call('ZRANGEBYSCORE', waves, '(' .. whole(now_ms + longest_ms), '+inf', 'LIMIT', 0, max_trips - #due)
for _, trip_id in ipairs(ahead) do
  due[#due + 1] = trip_id
end
for _, trip_id in ipairs(due) do
  redis.call('ZADD', waves, whole(now_ms + again_ms), trip_id)
end
local next_one = redis.call('ZRANGE', waves, 0, 0, 'WITHSCORES')
return { now_ms, next_one[2] and tonumber(next_one[2]) or 0, due }
