-- Drivers who are online and available, but whose last saved position is older than five minutes.
-- Each row is a driver who gets no offers, although their app shows them as available.
-- Worry when there are many at once: an app has stopped sending positions, or the job that saves them does not run.
SELECT user_id, zone, vehicle_type, location_updated_at
  FROM driver_details
 WHERE is_online AND availability_status = 'available'
   AND (location_updated_at IS NULL OR location_updated_at < now() - interval '5 minutes')
 ORDER BY location_updated_at NULLS FIRST LIMIT 100;
