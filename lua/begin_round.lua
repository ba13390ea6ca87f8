-- Purpose: begins a zone's round of matching with these trips, or puts them off until the next one.
-- Atomic because: of all servers of a zone one runs a round, and what an earlier one still plans is void from then on.
-- KEYS[1] matching of the zone
-- KEYS[2] trips by the time of their next wave
-- KEYS[3] who does the rounds of the zone
-- ARGV[1] time between two rounds, in ms
-- ARGV[2] fence by which the caller holds the zone, or empty
-- ARGV[3...] trip ids
-- RETURNS {the round's fence, or 0: it is not time, or the zone is another server's, now in ms, when the next one is due in ms}; in either case the
--   trips are due at the next one, so that none waits for longer should this server fail
--- @include "clock"
--- @include "fence"
local matching, waves, holder = KEYS[1], KEYS[2], KEYS[3]
local every_ms, zone_fence = tonumber(ARGV[1]), ARGV[2]
local FIRST_TRIP = 3

if not is_held(holder, zone_fence) then
  return { 0, now_ms, now_ms }
end
local next_ms = tonumber(redis.call('HGET', matching, 'next_ms') or '0')
local fence = 0
-- A clock that stepped back must not put rounds off for longer than the time between two.
if next_ms <= now_ms or next_ms > now_ms + every_ms then
  next_ms = now_ms + every_ms
  fence = redis.call('HINCRBY', matching, 'fence', 1)
  redis.call('HSET', matching, 'next_ms', whole(next_ms))
end
for i = FIRST_TRIP, #ARGV do
  redis.call('ZADD', waves, 'XX', whole(next_ms), ARGV[i])
end
return { fence, now_ms, next_ms }
