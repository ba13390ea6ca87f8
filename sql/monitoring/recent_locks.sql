-- The last hundred trips that a driver got, with the driver and the present state.
-- The first row is as recent as the last accept; this is the place to see who has which trip.
-- Worry when the first row is old while customers ask for trips: accepts do not get through.
SELECT id, version, driver_id, current_status, locked_at FROM trip_requests WHERE locked_at IS NOT NULL ORDER BY locked_at DESC LIMIT 100;
