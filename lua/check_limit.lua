-- Purpose: counts one call against the limits that apply, for calls that have no script of their own.
-- Atomic because: two calls that each counted first could both take the last place in the window.
-- KEYS[1] epoch of the zone
-- KEYS[2...] logs of the limits that apply
-- ARGV[1] 1 where the caller has seeded the logs, so that it counts though the zone is cold; 0 where it has not
-- ARGV[2...] pairs for the limits: most admitted, window in s
-- RETURNS {cold, admitted or rate_limited, now in ms, index of the limit to report, remaining, reset in ms}
--- @include "clock"
--- @include "limits"
local epoch = KEYS[1]
local is_seeded = ARGV[1]

-- The logs of a Redis that came back empty are seeded as the zone is loaded; until then they admit too many.
if is_seeded == '0' and redis.call('EXISTS', epoch) == 0 then
  return { 'cold', now_ms, 0, 0, 0 }
end
local is_refused, limit_index, remaining, reset_ms = check_limits(2, 2)
if is_refused then
  return { 'rate_limited', now_ms, limit_index, remaining, reset_ms }
end
remaining = record_admission(2, 2, remaining)
return { 'admitted', now_ms, limit_index, remaining, reset_ms }
