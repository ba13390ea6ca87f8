-- Sliding logs: a list of the times (µs) of what was admitted, oldest first. Needs clock.lua.
-- The limits of a call are neighbours in KEYS, mostly its tail, and in ARGV as pairs: most admitted, window in s.

-- A clock that stepped back has left times that lie ahead. They count as of now: nothing that was admitted is forgotten,
-- and nobody waits for longer than a window. Looked for where a time is at hand that tells: the oldest, or the one that
-- a refusal waits for. After a step of less than a window others may lie ahead, and count for longer by the step.
local function pull_back(key, window_us)
  local times = redis.call('LRANGE', key, 0, -1)
  for i, time in ipairs(times) do
    times[i] = math.min(tonumber(time), now_us)
  end
  table.sort(times)
  redis.call('DEL', key)
  for _, time in ipairs(times) do
    redis.call('RPUSH', key, whole(time))
  end
  redis.call('PEXPIRE', key, window_us / 1000 + 1000)  -- here as well: a refusal records nothing
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
    if oldest and tonumber(oldest) > now_us then
      pull_back(KEYS[k], window_us)
      oldest = now_us
    end
    -- What has left the window counts for nothing, so dropping it is no effect that a refusal would have to undo.
    while oldest and tonumber(oldest) <= now_us - window_us do
      redis.call('LPOP', KEYS[k])
      oldest = redis.call('LINDEX', KEYS[k], 0)
    end
    local used = oldest and redis.call('LLEN', KEYS[k]) or 0
    if used >= max_calls then
      local waited_for_us = tonumber(redis.call('LINDEX', KEYS[k], used - max_calls))
      if waited_for_us > now_us then
        pull_back(KEYS[k], window_us)
        waited_for_us = tonumber(redis.call('LINDEX', KEYS[k], used - max_calls))
      end
      local eases_us = waited_for_us + window_us
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
