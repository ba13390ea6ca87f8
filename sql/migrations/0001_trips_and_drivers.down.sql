DROP TABLE trip_events;
DROP TABLE driver_details;
DROP TABLE trip_requests;
DROP FUNCTION distance_m(point, point);
DROP FUNCTION is_position(point);
