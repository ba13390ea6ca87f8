-- Purpose: shows a driver as the scripts see them, with claim, connections and open offers; changes nothing.
--   redis-cli --eval lua/inspect/driver.lua 'dsp:{ZONE}:driver:DRIVER'
-- Atomic because: what is shown together was true together.
-- KEYS[1] driver; all other keys are those of their zone, so they share its slot
-- RETURNS a row a thing: {name, value}; lists hold 100 entries at most
--- @copy "clock"
-- Redis' own clock: one clock for all servers of a zone.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- tostring() would round a number of this size to 14 digits.
local function whole(number)
  return string.format('%.0f', number)
end
--- @end
local driver = KEYS[1]
local MOST = 100

local prefix, driver_id = string.match(driver or '', '^(dsp:{[^}]+}:)driver:(.+)$')
if not prefix then
  return redis.error_reply('ERR the key is dsp:{ZONE}:driver:DRIVER')
end

local function left(deadline_ms)
  local s = (deadline_ms - now_ms) / 1000
  return s > 0 and string.format('for %.1f s more', s) or string.format('over since %.1f s', -s)
end

local rows, vehicle_type = {}, nil
local fields = redis.call('HGETALL', driver)
for i = 1, #fields, 2 do
  rows[#rows + 1] = { fields[i], fields[i + 1] }
  if fields[i] == 'fix_ms' then
    rows[#rows + 1] = { 'fix', string.format('%.1f s old', (now_ms - fields[i + 1]) / 1000) }
  elseif fields[i] == 'vehicle_type' then
    vehicle_type = fields[i + 1]
  end
end
if #rows == 0 then
  rows[1] = { 'driver', 'not known in this zone' }
end
rows[#rows + 1] = { 'claimed by', redis.call('GET', prefix .. 'claim:driver:' .. driver_id) or 'nobody' }
rows[#rows + 1] = { 'in the geo set', vehicle_type and redis.call('ZSCORE', prefix .. 'geo:' .. vehicle_type, driver_id)
  and 'yes' or 'no' }
local ends = redis.call('ZSCORE', prefix .. 'present', 'driver:' .. driver_id)
rows[#rows + 1] = { 'present', ends and left(ends) or 'no' }
local connections = redis.call('ZRANGE', prefix .. 'connections:driver:' .. driver_id, 0, MOST - 1, 'WITHSCORES')
for i = 1, #connections, 2 do
  rows[#rows + 1] = { 'connection ' .. connections[i], left(connections[i + 1]) }
end
local inbox = redis.call('ZRANGE', prefix .. 'inbox:' .. driver_id, 0, MOST - 1, 'WITHSCORES')
for i = 1, #inbox, 2 do
  rows[#rows + 1] = { 'offer of ' .. inbox[i], left(inbox[i + 1]) }
end
return rows
