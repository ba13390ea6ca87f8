-- Redis' own clock: one clock for all servers of a zone.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- tostring() would round a number of this size to 14 digits.
local function whole(number)
  return string.format('%.0f', number)
end
