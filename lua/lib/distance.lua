-- Metres between two places in degrees, on the sphere that GEOSEARCH measures on.
local function distance_m(lng, lat, other_lng, other_lat)
  local EARTH_M = 6372797.560856
  local u = math.sin(math.rad(other_lat - lat) / 2)
  local v = math.sin(math.rad(other_lng - lng) / 2)
  return 2 * EARTH_M * math.asin(math.sqrt(u * u + math.cos(math.rad(lat)) * math.cos(math.rad(other_lat)) * v * v))
end
