-- Whether a driver may be offered a trip, or has nothing to do here any more. Needs clock.lua. The values are those of
-- the driver's hash.

local function works(is_online)
  return is_online == '1'
end

local function wants_trips(availability_status)
  return availability_status == 'available'
end

local function has_trip(trip_id)
  return (trip_id or '') ~= ''
end

local function is_free(is_online, availability_status, trip_id)
  return works(is_online) and wants_trips(availability_status) and not has_trip(trip_id)
end

local function has_fix(fix_ms)
  return fix_ms and true or false
end

local function is_fresh(fix_ms, fix_age_ms)
  return (fix_ms and tonumber(fix_ms) > now_ms - fix_age_ms) or false
end

-- The hash of a driver who is offline and has no trip ends after this long; Postgres knows them.
local GONE_S = 3600

local function is_gone(is_online, trip_id)
  return not works(is_online) and not has_trip(trip_id)
end
