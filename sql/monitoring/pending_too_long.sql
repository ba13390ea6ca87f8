-- Trips that have waited for a driver for more than five minutes: waves are not running, or nobody is near.
SELECT id, zone, vehicle_type, created_at, now() - created_at AS waited
  FROM trip_requests
 WHERE current_status = 'pending' AND created_at < now() - interval '5 minutes'
 ORDER BY created_at LIMIT 100;
