-- Purpose: makes a server the one that does a zone's rounds.
-- Atomic because: compare and write; a server that is late must not take the zone back from its successor.
-- KEYS[1] who does the rounds of the zone
-- ARGV[1] fence: the number of the list of servers by which the zone is this server's
-- ARGV[2] this server
-- ARGV[3] what its waves go by, for lua/inspect/why.lua: see wave_settings in dispatcher/live/servers.py
-- RETURNS {1 where the zone is this server's, else 0; the fence by which it is held}
local holder = KEYS[1]
local fence, node, waves = ARGV[1], ARGV[2], ARGV[3]

local held = redis.call('HMGET', holder, 'fence', 'node')
if held[1] and (tonumber(held[1]) > tonumber(fence) or held[1] == fence and held[2] ~= node) then
  return { 0, tonumber(held[1]) }
end
redis.call('HSET', holder, 'fence', fence, 'node', node, 'waves', waves)
return { 1, tonumber(fence) }
