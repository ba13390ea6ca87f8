-- Purpose: numbers the drivers of a queue in the order of their arrival, tells those whose number has changed, and takes
--   out who holds no place any more.
-- Atomic because: a driver who takes a trip or comes back in between would lose a new place with the old one.
-- KEYS[1] the queue of a vehicle type
-- KEYS[2] what the channels of the zone's users begin with; an address (role:id) follows
-- KEYS[3...] drivers, in the order of the queue
-- ARGV[1] name of the queue
-- ARGV[2] vehicle type
-- ARGV[3] how many drivers are before these
-- ARGV[4...] driver ids
-- RETURNS {now in ms, how many drivers hold a place, those before included, drivers who have lost theirs}
--- @include "clock"
--- @include "eligibility"
--- @include "queues"
local queue, channels = KEYS[1], KEYS[2]
local name, vehicle_type, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIRST_DRIVER, FIRST_ID = 3, 4
-- No zone grants a longer absence (dispatcher/zones_file.py): what ends later is of a clock that stepped back.
local LONGEST_ABSENCE_MS = 3600000

local lost = {}
for i = FIRST_ID, #ARGV do
  local k, driver_id = FIRST_DRIVER + i - FIRST_ID, ARGV[i]
  local driver = KEYS[k]
  local who = redis.call('HMGET', driver, 'is_online', 'availability_status', 'trip_id', 'vehicle_type', 'queue',
    'queue_until', 'queued_at', 'queue_number')
  local held = who[5] or ''
  local is_standing = held == name and who[4] == vehicle_type and holds_place(held, who[6]) and tonumber(who[7] or '')
  if is_standing and is_free(who[1], who[2], who[3]) then
    number = number + 1
    if tonumber(who[6]) > now_ms + LONGEST_ABSENCE_MS then
      redis.call('HSET', driver, 'queue_until', whole(now_ms + LONGEST_ABSENCE_MS))
    end
    if who[8] ~= whole(number) then
      redis.call('HSET', driver, 'queue_number', number)
      redis.call('SPUBLISH', channels .. 'driver:' .. driver_id, '{"type":"queue","queue":"' .. name .. '","position":'
        .. number .. ',"queued_at_ms":' .. who[7] .. '}')
    end
  else
    redis.call('ZREM', queue, driver_id)
    -- In another queue, or in this one of another vehicle type, they have a number again.
    if held == '' or held == name and who[4] == vehicle_type then
      if who[1] then
        redis.call('HSET', driver, 'queue', '', 'queue_number', '')
      end
      lost[#lost + 1] = driver_id
      redis.call('SPUBLISH', channels .. 'driver:' .. driver_id,
        '{"type":"queue","queue":null,"position":null,"queued_at_ms":null}')
    end
  end
end
return { now_ms, number, lost }
