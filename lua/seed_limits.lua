-- Purpose: adds to sliding logs what a server has admitted and Redis does not know: it lost it, or was away.
-- Atomic because: calls that are counted meanwhile would be lost, or change what is compared.
-- KEYS[1...] logs of limits
-- ARGV[1...] for each log: its window, how many times follow, and these: when (ms) calls were admitted, oldest first
-- RETURNS how many times were added
--- @include "clock"
-- A server knows in ms what the log has in µs. An admission that the log has in its ms is known to it; of several in
-- one ms, as many as it has. So each server adds its own, whatever others have added before.
local function in_ms(time_us)
  return math.floor(time_us / 1000)
end

local added, at = 0, 1
for k = 1, #KEYS do
  local window_s, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local times, known, missing = redis.call('LRANGE', KEYS[k], 0, -1), {}, 0
  for i, time in ipairs(times) do
    times[i] = tonumber(time)
    known[in_ms(times[i])] = (known[in_ms(times[i])] or 0) + 1
  end
  for i = at + 2, at + 1 + count do
    local admitted_ms = math.min(tonumber(ARGV[i]), now_ms)
    local left = known[admitted_ms] or 0
    if left > 0 then
      known[admitted_ms] = left - 1
    else
      times[#times + 1], missing = admitted_ms * 1000, missing + 1
    end
  end
  if missing > 0 then
    table.sort(times)
    redis.call('DEL', KEYS[k])
    for _, time in ipairs(times) do
      redis.call('RPUSH', KEYS[k], whole(time))
    end
  end
  redis.call('EXPIRE', KEYS[k], window_s + 1)
  added, at = added + missing, at + 2 + count
end
return added
