-- Purpose: shows a trip as the scripts see it, with its claim, its offers and who may not have it; changes nothing.
--   redis-cli --eval lua/inspect/trip.lua 'dsp:{ZONE}:trip:TRIP'
-- Atomic because: what is shown together was true together.
-- KEYS[1] trip; all other keys are those of its zone, so they share its slot
-- RETURNS a row a thing: {name, value}; lists hold 100 entries at most, and say how many there are
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
local trip = KEYS[1]
local MOST = 100

local prefix, trip_id = string.match(trip or '', '^(dsp:{[^}]+}:)trip:(.+)$')
if not prefix then
  return redis.error_reply('ERR the key is dsp:{ZONE}:trip:TRIP')
end
local rows = {}
local fields = redis.call('HGETALL', trip)
for i = 1, #fields, 2 do
  rows[#rows + 1] = { fields[i], fields[i + 1] }
end
if #rows == 0 then
  rows[1] = { 'trip', 'not in Redis' }
end
rows[#rows + 1] = { 'claimed by', redis.call('GET', prefix .. 'claim:trip:' .. trip_id) or 'nobody' }
local due = redis.call('ZSCORE', prefix .. 'waves', trip_id)
rows[#rows + 1] = { 'next wave', due and string.format('in %.1f s', (due - now_ms) / 1000) or 'none' }
local offers = redis.call('ZRANGE', prefix .. 'offers:' .. trip_id, 0, MOST - 1, 'WITHSCORES')
for i = 1, #offers, 2 do
  rows[#rows + 1] = { 'offered to ' .. offers[i], string.format('for %.1f s more', (offers[i + 1] - now_ms) / 1000) }
end
for _, kind in ipairs({ 'barred', 'passed' }) do
  local key = prefix .. kind .. ':' .. trip_id
  local found = redis.call('SRANDMEMBER', key, MOST)
  table.sort(found)
  rows[#rows + 1] = { kind, redis.call('SCARD', key) .. ' drivers: ' .. table.concat(found, ' ') }
end
return rows
