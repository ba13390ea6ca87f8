-- Purpose: hands out users whose presence ended longer ago than the grace period, each to one sweeper at a time.
-- Atomic because: two servers that looked together would both take the same driver offline, and another Redis, which
--   may lack the last signs of life, is told from the former one by its epoch. By a clock that has leapt, everybody
--   would be absent at once, so it is looked at in the same step.
-- KEYS[1] users of the zone by the end of their presence
-- KEYS[2] epoch of the zone
-- ARGV[1] grace period in ms
-- ARGV[2] time in ms after which a user is handed out again, should this sweeper fail; after the grace period where
--   that is shorter
-- ARGV[3] most users in one call
-- ARGV[4] epoch in which users may be handed out, or empty: none
-- ARGV[5] latest time in ms that this clock may show; past it nobody is handed out
-- ARGV[6] longest life of a presence in ms
-- RETURNS {epoch of the zone or empty, now in ms, addresses (role:id)}
--- @include "clock"
local present, epoch = KEYS[1], KEYS[2]
local grace_ms, again_ms, max_users, expected = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local latest_ms, life_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

-- A clock that stepped back has left ends that nobody would live to see.
for _, address in ipairs(redis.call('ZRANGEBYSCORE', present, '(' .. whole(now_ms + life_ms), '+inf', 'LIMIT', 0, max_users)) do
  redis.call('ZADD', present, whole(now_ms + life_ms), address)
end
local known = redis.call('GET', epoch) or ''
if known ~= expected or known == '' or now_ms > latest_ms then
  return { known, now_ms, {} }
end
local absent = redis.call('ZRANGEBYSCORE', present, '-inf', whole(now_ms - grace_ms), 'LIMIT', 0, max_users)
for _, address in ipairs(absent) do
  -- In the past, however short the grace is: who was handed out is not present.
  redis.call('ZADD', present, whole(math.min(now_ms - grace_ms + again_ms, now_ms)), address)
end
return { known, now_ms, absent }
