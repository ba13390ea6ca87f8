-- What operators look up: trips, drivers and offers, in pages. A page begins after the last row of the one before.

-- name: recent_trips(zone, statuses, since, before, before_id, max_rows)
-- The trips that changed last, the latest first, found by the event of their present version: the table of trips has
-- no index by time, which each accept would have to write.
SELECT t.*, NULL AS driver_vehicle_type
  FROM trip_events e JOIN trip_requests t ON t.id = e.trip_id AND t.version = e.version
 WHERE e.created_at >= :since AND e.created_at <= :before
   AND (e.created_at, e.trip_id) < (:before::timestamptz, :before_id::text)
   AND (:zone::text IS NULL OR t.zone = :zone)
   AND (:statuses::text[] IS NULL OR t.current_status = ANY (:statuses::text[]))
 ORDER BY e.created_at DESC, e.trip_id DESC LIMIT :max_rows;

-- name: trips_of(ids, party, zone, statuses, before, before_id, max_rows)
-- The trips of these ids, and those whose customer or driver somebody is, the latest change first. Every state is
-- named, so that the index of states and drivers is used.
SELECT t.*, NULL AS driver_vehicle_type
  FROM trip_requests t
 WHERE t.id IN (SELECT id FROM trip_requests WHERE id = ANY (:ids::text[])
                UNION ALL
                SELECT id FROM trip_requests WHERE customer_id = :party
                UNION ALL
                SELECT id FROM trip_requests
                 WHERE driver_id = :party AND current_status = ANY (ARRAY
                       ['pending', 'accepted', 'arrived', 'ongoing', 'completed', 'cancelled', 'expired']))
   AND (t.updated_at, t.id::text) < (:before::timestamptz, :before_id::text)
   AND (:zone::text IS NULL OR t.zone = :zone)
   AND (:statuses::text[] IS NULL OR t.current_status = ANY (:statuses::text[]))
 ORDER BY t.updated_at DESC, t.id::text DESC LIMIT :max_rows;

-- name: pending_of_zone(zone, after, after_id, max_rows)
-- The pending trips of a zone, those that have waited longest first.
SELECT t.*, NULL AS driver_vehicle_type
  FROM trip_requests t
 WHERE t.current_status = 'pending' AND t.zone = :zone
   AND (t.created_at, t.id::text) > (:after::timestamptz, :after_id::text)
 ORDER BY t.created_at, t.id::text LIMIT :max_rows;

-- name: zone_driver_statistics(zone)^
-- How many drivers are online in a zone, and how many of them have a trip, are free, or have made themselves unavailable.
SELECT count(*) AS online, count(t.id) AS on_trip,
       count(*) FILTER (WHERE t.id IS NULL AND d.availability_status = 'available') AS free,
       count(*) FILTER (WHERE t.id IS NULL AND d.availability_status <> 'available') AS unavailable
  FROM driver_details d
  LEFT JOIN trip_requests t
    ON t.driver_id = d.user_id AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 WHERE d.zone = :zone AND d.is_online;

-- name: page_of_trip_offers(trip_id, after_wave, after_driver, max_rows)
-- The offers of a trip, wave by wave; a decline that was saved before its offer is told with the offer.
SELECT driver_id, wave, distance_m, offered_at, deadline, outcome, outcome_at, score, offered_by
  FROM trip_offers o
 WHERE trip_id = :trip_id AND (wave, driver_id) > (:after_wave::int, :after_driver::text)
   AND NOT (wave = 0 AND EXISTS (SELECT FROM trip_offers d
                                  WHERE d.trip_id = o.trip_id AND d.driver_id = o.driver_id AND d.wave > 0
                                    AND d.outcome = 'declined' AND d.outcome_at = o.outcome_at))
 ORDER BY wave, driver_id LIMIT :max_rows;

-- name: offers_of_driver(driver_id, before, before_id, max_rows)
-- The offers that a driver got, the latest first.
SELECT trip_id, wave, distance_m, offered_at, deadline, outcome, outcome_at, score, offered_by
  FROM trip_offers
 WHERE driver_id = :driver_id AND (offered_at, trip_id) < (:before::timestamptz, :before_id::text)
 ORDER BY offered_at DESC, trip_id DESC, wave DESC LIMIT :max_rows;

-- name: find_drivers(prefix, zone, only_online, after, max_rows)
-- Drivers whose id begins with a prefix, by id.
SELECT user_id, zone, availability_status, is_online, vehicle_type, version, updated_at, NULL AS trip_id
  FROM driver_details
 WHERE user_id > :after AND starts_with(user_id, :prefix)
   AND (:zone::text IS NULL OR zone = :zone) AND (is_online OR NOT :only_online)
 ORDER BY user_id LIMIT :max_rows;

-- name: saved_position(driver_id)^
-- The last position of a driver that was saved.
SELECT current_location[1] AS lat, current_location[0] AS lng, location_updated_at
  FROM driver_details WHERE user_id = :driver_id AND current_location IS NOT NULL;
