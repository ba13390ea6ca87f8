-- Which trips were taken last, by whom, and how they stand.
SELECT id, version, driver_id, current_status, locked_at FROM trip_requests WHERE locked_at IS NOT NULL ORDER BY locked_at DESC LIMIT 100;
