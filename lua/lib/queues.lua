-- A driver's place in a queue. Needs clock.lua. The values are those of the driver's hash: `queue` is its name, or empty,
-- `queue_until` when (ms) the place is lost unless the driver is seen there before.

-- No zone grants a longer absence (dispatcher/zones_file.py): what ends later is of a clock that stepped back, and over.
local LONGEST_ABSENCE_MS = 3600000

local function holds_place(queue, queue_until)
  local until_ms = tonumber(queue_until or '') or 0
  return string.find(queue or '', '^[a-z0-9-]+$') ~= nil and until_ms > now_ms and until_ms <= now_ms + LONGEST_ABSENCE_MS
end
