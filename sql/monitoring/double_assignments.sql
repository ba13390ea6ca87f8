-- Drivers with more than one active trip, and which trips these are.
-- There is never a row: the unique index trip_requests_one_active_per_driver forbids it.
-- Worry about any row: the index is missing or broken. Stop the servers and look at it before anything else.
SELECT driver_id, count(*) AS active_trips, array_agg(id) AS trips
  FROM trip_requests
 WHERE current_status IN ('accepted', 'arrived', 'ongoing')
 GROUP BY driver_id HAVING count(*) > 1;
