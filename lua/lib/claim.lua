-- How every claim begins, and how it refuses. Needs clock.lua, limits.lua and idempotency.lua. The script says before
-- which key is trip_claim, and where the limits stand: FIRST_LIMIT in KEYS, FIRST_RATE, their rates, in ARGV. Most
-- claims end here or soon after, and each function that is made costs 50 ns: what is not needed until then is included
-- later, like grant.lua.
-- The first keys and arguments of all claims are the same; each script's header names them, too.
local epoch, record, claims = KEYS[1], KEYS[2], KEYS[3]
local token, lease_ms, fingerprint = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local answer_ttl_ms, resolved, entry = ARGV[4], ARGV[5], ARGV[6]

-- Whether Postgres was asked already for what the word names: key, trip, driver or the change that is waited for; or,
-- with the word limits, whether an earlier claim of the same request has counted it.
local function is_resolved(word)
  return resolved ~= '' and string.find(resolved, word, 1, true) ~= nil
end

-- Is the zone loaded, is the request's key known, do the limits admit it?
local known = redis.call('MGET', epoch, record, trip_claim)
if not known[1] then
  return { 'cold', now_ms, 0, 0, 0 }
end
local is_refused, limit_index, remaining, reset_ms = check_limits(FIRST_LIMIT, FIRST_RATE)
local is_counted = is_resolved('limits')
if fingerprint ~= '' then
  local found, stored = judge_key(known[2], fingerprint, is_resolved('key'), known[1])
  -- A lease that is over is this very request's, whose outcome got lost: it was counted when it was granted.
  is_counted = is_counted or (known[2] and (not found or found == 'key_unresolved'))
  is_refused = is_refused and not is_counted
  -- Asking Postgres costs: whoever is over their limit does not have it asked.
  if found and not (found == 'key_unresolved' and is_refused) then
    return { found, now_ms, limit_index, remaining, reset_ms, stored }
  end
end
if is_refused and not is_counted then
  return { 'rate_limited', now_ms, limit_index, remaining, reset_ms }
end

-- The token of who changes the trip now; false: nobody does.
local trip_holder = known[3]

-- Whether it is no accept: the trip may be free in a moment, or be over already, and Redis is to be told yet. The
-- tokens of other attempts end in w (WAITED_FOR in dispatcher/live/claims.py).
local is_about_to_change = trip_holder and string.sub(trip_holder, -1) == 'w'

local function reply(code, ...)
  return { code, now_ms, limit_index, remaining, reset_ms, ... }
end

-- Refuses for good. `is_kept` says that a retry with the same key is to get the same refusal.
local function refuse(code, version, status, is_kept)
  if not is_counted then
    remaining = record_admission(FIRST_LIMIT, FIRST_RATE, remaining)
  end
  if is_kept and fingerprint ~= '' then
    redis.call('SET', record, 'N ' .. fingerprint .. ' ' .. code .. ' ' .. version .. ' ' .. status, 'PX', answer_ttl_ms)
  end
  return reply(code, version, status)
end
