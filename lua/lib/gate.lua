-- What every claim asks first: is the zone loaded, is the request's key known, do the limits admit it.
-- Needs clock.lua, limits.lua and idempotency.lua.

-- Returns the reply to give, or nil to go on; whether the limits have counted this request already, so that it is
-- not counted again; then what check_limits() says of the limit to report.
local function gate(epoch_key, key, fingerprint, resolved, first_limit, first_pair)
  local known = redis.call('MGET', epoch_key, key)
  if not known[1] then
    return { 'cold', now_ms, 0, 0, 0 }
  end
  local refused, place, remaining, reset_ms = check_limits(first_limit, first_pair)
  local counted = string.find(resolved, 'l', 1, true)
  refused = refused and not counted
  if fingerprint ~= '' then
    local asked = string.find(resolved, 'k', 1, true)
    local found, stored = judge_key(known[2], fingerprint, asked, horizon_ms(known[1]))
    -- Asking Postgres costs: whoever is over their limit does not have it asked.
    if found and not (found == 'key_unresolved' and refused) then
      return { found, now_ms, place, remaining, reset_ms, stored or '' }
    end
  end
  if refused then
    return { 'rate_limited', now_ms, place, remaining, reset_ms }
  end
  return nil, counted, place, remaining, reset_ms
end
