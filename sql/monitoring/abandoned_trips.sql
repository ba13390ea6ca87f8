-- Trips that were accepted more than an hour ago and have not started.
-- Each row is a customer who waits for a driver who forgot the trip or whose app is broken.
-- Worry about every row: call the driver, or cancel the trip as an admin so that the customer can ask again.
SELECT id, driver_id, locked_at, current_status FROM trip_requests WHERE locked_at < NOW() - INTERVAL '1 hour' AND current_status = 'accepted' AND trip_start_time IS NULL;
