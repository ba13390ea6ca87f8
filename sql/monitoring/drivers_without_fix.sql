-- Drivers who are online and available, but whose last position is old: they get no offers.
SELECT user_id, zone, vehicle_type, location_updated_at
  FROM driver_details
 WHERE is_online AND availability_status = 'available'
   AND (location_updated_at IS NULL OR location_updated_at < now() - interval '5 minutes')
 ORDER BY location_updated_at NULLS FIRST LIMIT 100;
