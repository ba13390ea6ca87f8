-- Drivers with more than one active trip. No row, ever: an index forbids it.
SELECT driver_id, count(*) AS active_trips, array_agg(id) AS trips
  FROM trip_requests
 WHERE current_status IN ('accepted', 'arrived', 'ongoing')
 GROUP BY driver_id HAVING count(*) > 1;
