-- How old a driver's last position is. Needs clock.lua. The values are those of the driver's hash.

local function has_fix(fix_ms)
  return fix_ms and true or false
end

local function is_fresh(fix_ms, fix_age_ms)
  return (fix_ms and tonumber(fix_ms) > now_ms - fix_age_ms) or false
end
