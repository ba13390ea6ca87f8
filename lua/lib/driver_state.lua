-- What the hash of a driver says of them, value by value.

local function works(is_online)
  return is_online == '1'
end

local function wants_trips(availability_status)
  return availability_status == 'available'
end

local function has_trip(trip_id)
  return (trip_id or '') ~= ''
end
