-- Purpose: shows a zone at a glance: when it was loaded, and how many of everything it holds; changes nothing.
--   redis-cli --eval lua/inspect/zone.lua 'dsp:{ZONE}:epoch'
-- Atomic because: what is shown together was true together.
-- KEYS[1] epoch of the zone; all other keys are those of the zone, so they share its slot
-- RETURNS a row a thing: {name, value}
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
local epoch = KEYS[1]

local prefix = string.match(epoch or '', '^(dsp:{[^}]+}:)epoch$')
if not prefix then
  return redis.error_reply('ERR the key is dsp:{ZONE}:epoch')
end
local rows = {}
local known = redis.call('GET', epoch)
local loaded_ms = known and string.match(known, '^%d+')
rows[1] = { 'loaded', loaded_ms and string.format('%.1f s ago', (now_ms - loaded_ms) / 1000) or 'no: the zone is cold' }
rows[2] = { 'being loaded by', redis.call('GET', prefix .. 'loading') or 'nobody' }
rows[3] = { 'claims', redis.call('ZCARD', prefix .. 'claims')
  .. ', overdue ' .. redis.call('ZCOUNT', prefix .. 'claims', '-inf', whole(now_ms)) }
rows[4] = { 'trips that wait for a wave', redis.call('ZCARD', prefix .. 'waves')
  .. ', due ' .. redis.call('ZCOUNT', prefix .. 'waves', '-inf', whole(now_ms)) }
rows[5] = { 'drivers with a fix', redis.call('ZCARD', prefix .. 'seen') }
rows[6] = { 'users present', redis.call('ZCOUNT', prefix .. 'present', '(' .. whole(now_ms), '+inf')
  .. ', ended ' .. redis.call('ZCOUNT', prefix .. 'present', '-inf', whole(now_ms)) }
rows[7] = { 'events in the stream', redis.call('XLEN', prefix .. 'events') }
local vehicles = redis.call('SMEMBERS', prefix .. 'vehicles')
table.sort(vehicles)
for _, vehicle_type in ipairs(vehicles) do
  rows[#rows + 1] = { 'may be offered a trip, ' .. vehicle_type, redis.call('ZCARD', prefix .. 'geo:' .. vehicle_type) }
end
return rows
