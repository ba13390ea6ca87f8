-- Whether a driver has nothing to do here any more. Needs driver_state.lua.

-- The hash of a driver who is offline and has no trip ends after this long; Postgres knows them.
local GONE_S = 3600

local function is_gone(is_online, trip_id)
  return not works(is_online) and not has_trip(trip_id)
end
