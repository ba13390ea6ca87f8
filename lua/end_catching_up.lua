-- Purpose: ends the telling of a zone, which Postgres decides about alone, by the server that holds its lock, and notes what was told.
-- Atomic because: compare, write and delete; a Redis that was emptied since has lost the lock with what it was told.
-- KEYS[1] the server that tells the zone
-- KEYS[2] what the zone was told
-- ARGV[1] token of this server's telling
-- ARGV[2] the note to write, or empty: it came to nothing
-- ARGV[3] life of the note, in ms
-- RETURNS 1 where the lock was held, 0 where it was another server's and nothing was done
local lock, note = KEYS[1], KEYS[2]
local token, told, life_ms = ARGV[1], ARGV[2], ARGV[3]

if redis.call('GET', lock) ~= token then
  return 0
end
if told ~= '' then
  redis.call('SET', note, told, 'PX', life_ms)
end
redis.call('DEL', lock)
return 1
