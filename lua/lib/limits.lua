-- Sliding logs: a list of the times (µs) of what was admitted, oldest first. Needs clock.lua.
-- The limits of a call are neighbours in KEYS, mostly its tail, and in ARGV as pairs: most admitted, window in s.

-- A clock that stepped back has left times that lie ahead. They count as of now: nothing that was admitted is forgotten,
-- and nobody waits for longer than a window. Returns whether there were such times.
local function pull_back(key)
  local ahead = 0
  while tonumber(redis.call('LINDEX', key, -1) or 0) > now_us do
    redis.call('RPOP', key)
    ahead = ahead + 1
  end
  for _ = 1, ahead do
    redis.call('RPUSH', key, whole(now_us))
  end
  return ahead > 0
end

-- Returns refused, index of the limit to report (0: none), what remains, and when (ms) it eases.
-- A refusal that lasts longest is reported before others, and the tightest limit where none refuses.
local function check_limits(first_key, first_arg, last_key)
  local refused, limit_index, remaining, reset_us = false, 0, 0, 0
  for k = first_key, last_key or #KEYS do
    local at = first_arg + 2 * (k - first_key)
    local max_calls = tonumber(ARGV[at])
    local window_us = tonumber(ARGV[at + 1]) * 1000000
    local oldest = redis.call('LINDEX', KEYS[k], 0)
    if oldest and pull_back(KEYS[k]) then
      oldest = redis.call('LINDEX', KEYS[k], 0)
    end
    -- What has left the window counts for nothing, so dropping it is no effect that a refusal would have to undo.
    while oldest and tonumber(oldest) <= now_us - window_us do
      redis.call('LPOP', KEYS[k])
      oldest = redis.call('LINDEX', KEYS[k], 0)
    end
    local used = oldest and redis.call('LLEN', KEYS[k]) or 0
    if used >= max_calls then
      local eases_us = tonumber(redis.call('LINDEX', KEYS[k], used - max_calls)) + window_us
      if not refused or eases_us > reset_us then
        limit_index, remaining, reset_us = k - first_key + 1, 0, eases_us
      end
      refused = true
    elseif not refused and (limit_index == 0 or max_calls - used < remaining) then
      limit_index, remaining = k - first_key + 1, max_calls - used
      reset_us = (oldest and tonumber(oldest) or now_us) + window_us
    end
  end
  return refused, limit_index, remaining, math.ceil(reset_us / 1000)
end

-- Returns what remains of the reported limit afterwards.
local function record_admission(first_key, first_arg, remaining, last_key)
  for k = first_key, last_key or #KEYS do
    redis.call('RPUSH', KEYS[k], whole(now_us))
    -- A second more than the window: a key's end is counted in whole ms, what is admitted in µs.
    redis.call('EXPIRE', KEYS[k], tonumber(ARGV[first_arg + 2 * (k - first_key) + 1]) + 1)
  end
  return remaining - 1
end
