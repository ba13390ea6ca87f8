-- Purpose: gives users who are online and have no presence at all one that ends: their server died before it told of
--   them, or Redis was emptied. From then on they are present, or absent, like anyone else.
-- Atomic because: time and entries belong together; a user who comes back in between keeps the later end.
-- KEYS[1] users of the zone by the end of their presence
-- ARGV[1] life in ms
-- ARGV[2...] addresses (role:id)
-- RETURNS how many users had none
--- @include "clock"
local present = KEYS[1]
local life_ms = tonumber(ARGV[1])
local FIRST_ADDRESS = 2

local ends, added = whole(now_ms + life_ms), 0
for a = FIRST_ADDRESS, #ARGV do
  added = added + redis.call('ZADD', present, 'NX', ends, ARGV[a])
end
return added
