-- Trips that have waited for a driver for more than five minutes, the oldest first.
-- Each row is a customer who waits: no driver is near, or all of them decline.
-- Worry when there are many at once, with drivers online in the same zone: the job that sends out waves does not run.
SELECT id, zone, vehicle_type, created_at, now() - created_at AS waited
  FROM trip_requests
 WHERE current_status = 'pending' AND created_at < now() - interval '5 minutes'
 ORDER BY created_at LIMIT 100;
