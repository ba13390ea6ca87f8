-- Purpose: makes a zone cold that was loaded into another Redis than this one, and says whether it is cold.
-- Atomic because: a zone that another server has loaded anew in between must not be made cold again.
-- KEYS[1] epoch of the zone
-- ARGV[1] run id of this Redis
-- RETURNS 1 where the zone is cold, 0 where it was loaded into this Redis
local epoch = KEYS[1]
local run_id = ARGV[1]

local known = redis.call('GET', epoch)
if known and string.match(known, '%S+$') == run_id then
  return 0
end
redis.call('DEL', epoch)
return 1
