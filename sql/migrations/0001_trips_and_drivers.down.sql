DROP TABLE trip_events;
DROP TABLE driver_details;
DROP TABLE trip_requests;
DROP DOMAIN trip_status, place, zone_name, trip_name;
DROP FUNCTION distance_m(point, point);
DROP FUNCTION is_position(point);
