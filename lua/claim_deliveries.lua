-- Purpose: hands a server the entries of a stream whose next attempt to tell a receiver is due: the one before has failed,
--   or the server that made it has died.
-- Atomic because: no entry may go to two servers at once, and Redis' clock alone says what is due.
-- KEYS[1] stream
-- ARGV[1] consumer group of the receiver
-- ARGV[2] the one consumer that all servers are
-- ARGV[3] most entries to hand out
-- ARGV[4] time that an attempt may take in ms
-- ARGV[5] rest after the first attempt in ms, which doubles with each
-- ARGV[6] longest rest in ms
-- ARGV[7] most entries that may be under way or waiting for their next attempt
-- RETURNS {entries under way or waiting, for each that is handed out {id, number of this attempt, its fields}}
local stream = KEYS[1]
local group, consumer, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local attempt_ms, rest_ms, longest_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_pending = tonumber(ARGV[7])

local pending = redis.call('XPENDING', stream, group)[1]
if pending == 0 then
  return { 0, {} }
end
local due, attempts = {}, {}
for _, row in ipairs(redis.call('XPENDING', stream, group, 'IDLE', attempt_ms + rest_ms, '-', '+', max_pending)) do
  local id, idle_ms, made = row[1], row[3], row[4]
  if #due < most and idle_ms >= attempt_ms + math.min(longest_ms, rest_ms * 2 ^ (made - 1)) then
    due[#due + 1] = id
    attempts[id] = made + 1
  end
end
local claimed = {}
if #due > 0 then
  -- Those that the stream has dropped meanwhile are forgotten by this, and not handed out.
  for _, entry in ipairs(redis.call('XCLAIM', stream, group, consumer, 0, unpack(due))) do
    claimed[#claimed + 1] = { entry[1], attempts[entry[1]], entry[2] }
  end
end
return { pending, claimed }
