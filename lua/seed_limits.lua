-- Purpose: adds to sliding logs what a server has admitted and Redis does not know: it lost it, or was away.
-- Atomic because: calls that are counted meanwhile would be lost, or change what is compared.
-- KEYS[1...] logs of limits
-- ARGV[1...] for each log: its window, how many times follow, and these: when (ms) calls were admitted, oldest first
-- RETURNS how many times were added
--- @include "clock"
-- What lies between the times that a log has is known to it: it has counted them itself. A server knows them in ms.
local function in_ms(time_us)
  return time_us and math.floor(tonumber(time_us) / 1000)
end

local added, at = 0, 1
for k = 1, #KEYS do
  local window_s, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local oldest_ms, newest_ms = in_ms(redis.call('LINDEX', KEYS[k], 0)), in_ms(redis.call('LINDEX', KEYS[k], -1))
  local earlier = {}
  for i = at + 2, at + 1 + count do
    local admitted_ms = math.min(tonumber(ARGV[i]), now_ms)
    if not oldest_ms or admitted_ms > newest_ms then
      redis.call('RPUSH', KEYS[k], whole(admitted_ms * 1000))
      added = added + 1
    elseif admitted_ms < oldest_ms then
      earlier[#earlier + 1] = whole(admitted_ms * 1000)
    end
  end
  for i = #earlier, 1, -1 do
    redis.call('LPUSH', KEYS[k], earlier[i])
    added = added + 1
  end
  redis.call('EXPIRE', KEYS[k], window_s + 1)
  at = at + 2 + count
end
return added
