-- Purpose: hands out users whose presence ended longer ago than the grace period, each to one sweeper at a time.
-- Atomic because: two servers that looked together would both take the same driver offline, and another Redis, which
--   may lack the last signs of life, is told from the former one by its epoch.
-- KEYS[1] users of the zone by the end of their presence
-- KEYS[2] epoch of the zone
-- ARGV[1] grace period in ms
-- ARGV[2] time in ms after which a user is handed out again, should this sweeper fail; after the grace period where
--   that is shorter
-- ARGV[3] most users in one call
-- ARGV[4] epoch in which users may be handed out, or empty: none
-- RETURNS {epoch of the zone or empty, addresses (role:id)}
--- @include "clock"
local present, epoch = KEYS[1], KEYS[2]
local grace_ms, again_ms, max_users, expected = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]

local known = redis.call('GET', epoch) or ''
if known ~= expected or known == '' then
  return { known, {} }
end
local absent = redis.call('ZRANGEBYSCORE', present, '-inf', whole(now_ms - grace_ms), 'LIMIT', 0, max_users)
for _, address in ipairs(absent) do
  -- In the past, however short the grace is: who was handed out is not present.
  redis.call('ZADD', present, whole(math.min(now_ms - grace_ms + again_ms, now_ms)), address)
end
return { known, absent }
