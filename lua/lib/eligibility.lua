-- Whether a driver may be offered a trip. The values are those of the driver's hash. It says what works(), wants_trips()
-- and has_trip() of driver_state.lua say, without them: each call that is spared is felt in a claim.
local function is_free(is_online, availability_status, trip_id)
  return is_online == '1' and availability_status == 'available' and (trip_id or '') == ''
end
