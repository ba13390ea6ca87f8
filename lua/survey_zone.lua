-- Purpose: says when the next thing is due in a zone, so that whoever does its rounds rests until then.
-- Atomic because: all is judged by one clock, and costs one call.
-- KEYS[1] who does the rounds of the zone
-- KEYS[2] epoch of the zone
-- KEYS[3...] sorted sets by time in ms: claims by the end of their lease, drivers by their last fix, users by the end of
--   their presence, trips by their next wave
-- ARGV[1] fence of the caller, or empty
-- RETURNS {1 where the zone is the caller's or 0, now in ms, epoch or empty, then for each sorted set its first time in
--   ms, or 0 where it has none}
--- @include "clock"
--- @include "fence"
local holder, epoch = KEYS[1], KEYS[2]
local fence = ARGV[1]
local FIRST_SET = 3

local survey = { is_held(holder, fence) and 1 or 0, now_ms, redis.call('GET', epoch) or '' }
for k = FIRST_SET, #KEYS do
  local first = redis.pcall('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')
  -- Due now where the key is of another type: whoever needs it says so.
  survey[#survey + 1] = first.err and now_ms or first[2] and math.floor(tonumber(first[2])) or 0
end
return survey
