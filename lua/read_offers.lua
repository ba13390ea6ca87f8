-- Purpose: the open offers of a driver.
-- Atomic because: what is open is judged by Redis' own clock.
-- KEYS[1] the driver's inbox
-- RETURNS for each open offer: trip id, deadline in ms, ms that are left
--- @include "clock"
local inbox = KEYS[1]

local open = redis.call('ZRANGEBYSCORE', inbox, '(' .. whole(now_ms), '+inf', 'WITHSCORES')
local result = {}
for i = 1, #open, 2 do
  local deadline = tonumber(open[i + 1])
  result[#result + 1] = { open[i], deadline, deadline - now_ms }
end
return result
