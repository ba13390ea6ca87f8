-- Purpose: makes a server the one that does a zone's rounds.
-- Atomic because: compare and write; a server that is late must not take the zone back from its successor.
-- KEYS[1] who does the rounds of the zone
-- ARGV[1] fence: the number of the list of servers by which the zone is this server's
-- ARGV[2] this server
-- ARGV[3] the settings its waves go by, for lua/inspect/why.lua: oldest fix in ms, most open offers of a driver, and of each
--   wave the most drivers who may hold an offer and the radius in m; separated by spaces
-- RETURNS {1 where the zone is this server's, else 0; the fence by which it is held}
local holder = KEYS[1]
local fence, node = ARGV[1], ARGV[2]

local held = redis.call('HMGET', holder, 'fence', 'node')
if held[1] and (tonumber(held[1]) > tonumber(fence) or held[1] == fence and held[2] ~= node) then
  return { 0, tonumber(held[1]) }
end
redis.call('HSET', holder, 'fence', fence, 'node', node, 'waves', ARGV[3] or '')
return { 1, tonumber(fence) }
