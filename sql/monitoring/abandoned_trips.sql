-- Taken more than an hour ago and not started: the driver forgot, or the app is broken.
SELECT id, driver_id, locked_at, current_status FROM trip_requests WHERE locked_at < NOW() - INTERVAL '1 hour' AND current_status = 'accepted' AND trip_start_time IS NULL;
