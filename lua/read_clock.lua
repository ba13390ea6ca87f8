-- Purpose: the time by which the zone's scripts judge, and the zone's epoch.
-- Atomic because: the scripts' own clock is told by a script alone.
-- KEYS[1] epoch of the zone
-- RETURNS {now in ms, the epoch, or empty where the zone is cold}
--- @include "clock"
local epoch = KEYS[1]

return { now_ms, redis.call('GET', epoch) or '' }
