-- What stands between a driver near a pickup and an offer of its trip: a wave offers to whom no filter refuses, and an
-- explanation shows what each filter says. Needs clock.lua, driver_state.lua, freshness.lua and queues.lua. What the
-- filters judge:
--   driver: is_online, availability_status, trip_id, fix_ms, vehicle_type, queue, queue_until as in the hash;
--     presence_ends_ms (0: none); is_barred, has_passed; offered_until_ms (of this trip; 0: never); open_offers; is_asked
--     where a queue asks them for another trip just now
--   wave: vehicle_type, fix_age_ms, max_open_offers; ask_again where drivers who let it pass may be asked again; queue
--     (nil: none) where who is asked is asked for their place in it

-- A filter is {what it keeps back: a code of dispatcher/core/obstacles.py; whether it lets the driver through; whether
-- who is refused has no place in the geo set}.
local CANDIDATE_FILTERS = {
  { 'offline', function(driver) return works(driver.is_online) end, true },
  { 'unavailable', function(driver) return wants_trips(driver.availability_status) end, true },
  { 'active_trip', function(driver) return not has_trip(driver.trip_id) end, true },
  { 'other_vehicle_type', function(driver, wave) return driver.vehicle_type == wave.vehicle_type end, true },
  { 'no_position', function(driver) return has_fix(driver.fix_ms) end },
  { 'stale_position', function(driver, wave) return is_fresh(driver.fix_ms, wave.fix_age_ms) end },
  { 'not_present', function(driver) return driver.presence_ends_ms > now_ms end },
  { 'barred', function(driver) return not driver.is_barred end },
  { 'passed', function(driver, wave) return wave.ask_again or not driver.has_passed end },
  { 'on_offer', function(driver) return driver.offered_until_ms <= now_ms end },
  -- Offers from elsewhere cost nobody their turn in a queue, which asks for one trip at a time.
  { 'enough_offers', function(driver, wave) return wave.queue or driver.open_offers < wave.max_open_offers end },
  { 'not_in_queue', function(driver, wave)
    return not wave.queue or driver.queue == wave.queue and holds_place(driver.queue, driver.queue_until)
  end },
  { 'asked_in_queue', function(driver, wave) return not (wave.queue and driver.is_asked) end },
}

-- The first filter that refuses a driver, or nil.
local function first_obstacle(driver, wave)
  for _, filter in ipairs(CANDIDATE_FILTERS) do
    if not filter[2](driver, wave) then
      return filter
    end
  end
  return nil
end
