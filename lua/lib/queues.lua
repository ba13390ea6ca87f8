-- A driver's place in a queue. Needs clock.lua. The values are those of the driver's hash: `queue` is its name, or empty,
-- `queue_until` when (ms) the place is lost unless the driver is seen there before.

-- A place that ends far ahead, since the clock stepped back, is one: number_queue.lua brings its end near.
local function holds_place(queue, queue_until)
  local until_ms = tonumber(queue_until or '') or 0
  return string.find(queue or '', '^[a-z0-9-]+$') ~= nil and until_ms > now_ms
end
