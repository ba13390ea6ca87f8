-- Whether a driver may be offered a trip. Needs clock.lua. The values are those of the driver's hash.

local function is_free(is_online, availability_status, trip_id)
  return is_online == '1' and availability_status == 'available' and (trip_id or '') == ''
end

local function is_fresh(fix_ms, fix_age_ms)
  return (fix_ms and tonumber(fix_ms) > now_ms - fix_age_ms) or false
end
