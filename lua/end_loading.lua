-- Purpose: ends the loading of a zone by the server that holds its lock: the zone is warm, or another one may try.
-- Atomic because: compare, write and delete; a lock that has expired may be another server's by now.
-- KEYS[1] the server that is loading the zone
-- KEYS[2] epoch of the zone
-- KEYS[3] since when the zone's stream may lack events: no longer, once it is loaded
-- KEYS[4] what the zone was told before: the same
-- ARGV[1] token of this server's loading
-- ARGV[2] the epoch to write, or empty: the zone stays cold
-- RETURNS 1 where the lock was held, 0 where it was another server's and nothing was done
local loading, epoch, unheard_since, caught_up = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, loaded = ARGV[1], ARGV[2]

if redis.call('GET', loading) ~= token then
  return 0
end
if loaded ~= '' then
  redis.call('SET', epoch, loaded)
  redis.call('DEL', unheard_since, caught_up)
end
redis.call('DEL', loading)
return 1
