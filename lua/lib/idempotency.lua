-- The live copy of idempotency keys. Needs clock.lua. A record is text:
--   L <fingerprint> <lease end, ms> <token>    in flight; past its end the outcome is to be asked of Postgres
--   D <fingerprint> <status> <body>            done, as Postgres keeps it
--   N <fingerprint> <code> <version> <state>   refused: kept here alone, since a refusal has no effect

-- Returns nil to go on, or the code to answer with, and the record without its fingerprint.
-- `asked` says that Postgres has been asked and knows no answer.
local function judge_key(record, fingerprint, asked, epoch)
  if not record then
    -- The second word of the zone's epoch: until when (ms) it may still exist in Postgres.
    if not asked and tonumber(string.match(epoch, '^%d+ (%d+)')) > now_ms then
      return 'key_unresolved'
    end
    return nil
  end
  if string.sub(record, 3, 66) ~= fingerprint then
    return 'key_reused'
  end
  local kind = string.sub(record, 1, 1)
  local rest = string.sub(record, 68)
  if kind ~= 'L' then
    return 'replay', kind .. ' ' .. rest
  end
  if tonumber(string.match(rest, '^%d+')) > now_ms then
    return 'request_in_progress'
  end
  if not asked then
    return 'key_unresolved'
  end
  return nil
end
