-- How every claim is granted: the request may go on to its commit, and the attempt is noted, so that it is found should
-- this server die. What is returned to it follows. Needs clock.lua, limits.lua and claim.lua.

-- The record's lease outlives the claims': a retry that may go on must not meet its own forerunner's claims.
local LEASE_MARGIN_MS = 5

if not is_counted then
  remaining = record_admission(FIRST_LIMIT, FIRST_RATE, remaining)
end
-- To the microsecond, so that a release finds by it what the limits have counted.
redis.call('ZADD', claims, string.format('%.3f', now_us / 1000 + lease_ms), entry)
if fingerprint ~= '' then
  local lease_end = whole(now_ms + lease_ms + LEASE_MARGIN_MS)
  redis.call('SET', record, 'L ' .. fingerprint .. ' ' .. lease_end .. ' ' .. token, 'PX', answer_ttl_ms)
end
