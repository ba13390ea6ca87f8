-- Purpose: hands out users whose presence ended longer ago than the grace period, each to one sweeper at a time.
-- Atomic because: two servers that looked together would both take the same driver offline.
-- KEYS[1] users of the zone by the end of their presence
-- ARGV[1] grace period in ms
-- ARGV[2] time in ms after which a user is handed out again, should this sweeper fail; after the grace period where
--   that is shorter
-- ARGV[3] most users in one call
-- RETURNS addresses (role:id)
--- @include "clock"
local present = KEYS[1]
local grace_ms, again_ms, max_users = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local absent = redis.call('ZRANGEBYSCORE', present, '-inf', whole(now_ms - grace_ms), 'LIMIT', 0, max_users)
for _, address in ipairs(absent) do
  -- In the past, however short the grace is: who was handed out is not present.
  redis.call('ZADD', present, whole(math.min(now_ms - grace_ms + again_ms, now_ms)), address)
end
return absent
