-- How every claim begins and ends. Needs clock.lua, limits.lua and idempotency.lua.
-- The first keys and arguments of all claims are the same; each script's header names them, too.
local epoch, record, claims = KEYS[1], KEYS[2], KEYS[3]
local token, lease_ms, fingerprint = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local answer_ttl_ms, resolved, entry = ARGV[4], ARGV[5], ARGV[6]

-- Where the limits stand in KEYS and their rates in ARGV, and how the limit to report stands.
local first_limit, first_rate = 0, 0
local limit_index, remaining, reset_ms = 0, 0, 0
local is_counted = false

-- Whether Postgres was asked already for what the word names: key, trip or driver; or, with the word limits, whether
-- an earlier claim of the same request has counted it.
local function is_resolved(word)
  return resolved ~= '' and string.find(resolved, word, 1, true) ~= nil
end

local function reply(code, ...)
  return { code, now_ms, limit_index, remaining, reset_ms, ... }
end

-- Is the zone loaded, is the request's key known, do the limits admit it? Returns the reply to give, or nil to go on.
local function begin_claim(limits_from, rates_from)
  first_limit, first_rate = limits_from, rates_from
  local known = redis.call('MGET', epoch, record)
  if not known[1] then
    return reply('cold')
  end
  local is_refused
  is_refused, limit_index, remaining, reset_ms = check_limits(first_limit, first_rate)
  is_counted = is_resolved('limits')
  if fingerprint ~= '' then
    local found, stored = judge_key(known[2], fingerprint, is_resolved('key'), horizon_ms(known[1]))
    -- A lease that is over is this very request's, whose outcome got lost: it was counted when it was granted.
    is_counted = is_counted or (known[2] and (not found or found == 'key_unresolved'))
    is_refused = is_refused and not is_counted
    -- Asking Postgres costs: whoever is over their limit does not have it asked.
    if found and not (found == 'key_unresolved' and is_refused) then
      return reply(found, stored)
    end
  end
  if is_refused and not is_counted then
    return reply('rate_limited')
  end
  return nil
end

local function count_request()
  if not is_counted then
    remaining = record_admission(first_limit, first_rate, remaining)
  end
end

-- Refuses for good. `is_kept` says that a retry with the same key is to get the same refusal.
local function refuse(code, version, status, is_kept)
  count_request()
  if is_kept then
    keep_refusal(record, fingerprint, answer_ttl_ms, code, version, status)
  end
  return reply(code, version, status)
end

-- Lets the request go on to its commit, and notes the attempt, so that it is found should this server die.
local function grant(...)
  count_request()
  -- To the microsecond, so that a release finds by it what the limits have counted.
  redis.call('ZADD', claims, string.format('%.3f', now_us / 1000 + lease_ms), entry)
  lease_key(record, fingerprint, answer_ttl_ms, now_ms + lease_ms, token)
  return reply('claimed', ...)
end
