-- Purpose: forgets a user who is gone, unless they came back meanwhile.
-- Atomic because: compare and remove.
-- KEYS[1] users of the zone by the end of their presence
-- ARGV[1] user's address (role:id)
-- RETURNS 1 where the user was forgotten, 0 where they are present again
--- @include "clock"
local present = KEYS[1]
local address = ARGV[1]

local ends = redis.call('ZSCORE', present, address)
if ends and tonumber(ends) > now_ms then
  return 0
end
redis.call('ZREM', present, address)
return 1
