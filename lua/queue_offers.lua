-- Purpose: puts the offers of a wave to drivers who have no socket into a stream, for a webhook that can wake their apps.
-- Atomic because: a connection that has ended by Redis' clock is no socket, and one call costs a tenth of one a driver.
-- KEYS[1] stream of offers that no socket hears
-- KEYS[2...] connections of each driver
-- ARGV[1] how many entries the stream keeps, roughly
-- ARGV[2] name of the connection that stands for calls over HTTP, which is no socket
-- ARGV[3...] the offer to each driver, as JSON
-- RETURNS how many offers were put there
--- @include "clock"
local stream = KEYS[1]
local kept, http = ARGV[1], ARGV[2]
local FIRST_DRIVER = 2

local queued = 0
local g = 3  -- where the offer to the first driver stands
for k = FIRST_DRIVER, #KEYS do
  local has_socket = false
  for _, connection in ipairs(redis.call('ZRANGEBYSCORE', KEYS[k], '(' .. whole(now_ms), '+inf')) do
    has_socket = has_socket or connection ~= http
  end
  if not has_socket then
    redis.call('XADD', stream, 'MAXLEN', '~', kept, '*', 'event', ARGV[g])
    queued = queued + 1
  end
  g = g + 1
end
return queued
