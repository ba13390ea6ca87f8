-- Purpose: hands out the attempts whose lease is over without a settle, each to one sweeper at a time.
-- Atomic because: two servers that looked together would both work on the same attempts.
-- KEYS[1] claims by the end of their lease
-- ARGV[1] most entries to hand out
-- ARGV[2] time in ms after which an entry is handed out again, should this sweeper fail
-- RETURNS the entries: token, trip id or -, driver id or -
--- @include "clock"
local claims = KEYS[1]
local max_entries, again_ms = ARGV[1], tonumber(ARGV[2])

local overdue = redis.call('ZRANGEBYSCORE', claims, '-inf', whole(now_ms), 'LIMIT', 0, max_entries)
for _, entry in ipairs(overdue) do
  redis.call('ZADD', claims, whole(now_ms + again_ms), entry)
end
return overdue
