-- Purpose: shows how the limits of one user stand; changes nothing.
--   redis-cli --eval lua/inspect/limits.lua 'dsp:{default}:epoch' , USER
-- Atomic because: what is shown together was true together.
-- KEYS[1] epoch of the zone that counts: default, unless a zone sets a limit of its own
-- ARGV[1] whose limits: the id of a user, or the address of a client
-- RETURNS a row a class: {class, how many calls its log holds, and the ages of the oldest and the newest}
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
local epoch, subject = KEYS[1], ARGV[1]
local CLASSES = { 'trip_accept', 'trip_cancel', 'location_update', 'general', 'operator', 'anonymous', 'ip' }

local prefix = string.match(epoch or '', '^(dsp:{[^}]+}:)epoch$')
if not prefix or not subject then
  return redis.error_reply('ERR the key is dsp:{ZONE}:epoch, and after a comma comes the subject')
end
local rows = {}
for _, class in ipairs(CLASSES) do
  local key = prefix .. 'limit:' .. class .. ':' .. subject
  local calls = redis.call('LLEN', key)
  local saw = calls .. ' calls'
  if calls > 0 then
    saw = saw .. string.format(', the oldest %.1f s ago, the newest %.1f s ago',
      (now_us - redis.call('LINDEX', key, 0)) / 1e6, (now_us - redis.call('LINDEX', key, -1)) / 1e6)
  end
  rows[#rows + 1] = { class, saw }
end
return rows
