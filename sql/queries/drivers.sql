-- name: get_driver(driver_id)^
-- One driver with their active trip.
SELECT d.user_id, d.zone, d.availability_status, d.is_online, d.vehicle_type, d.version, d.updated_at,
       t.id AS trip_id
  FROM driver_details d
  LEFT JOIN trip_requests t
    ON t.driver_id = d.user_id AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 WHERE d.user_id = :driver_id;

-- name: online_drivers_of_zone(zone, after, page_size)
-- A page, by id, of a zone's online drivers with their last positions and their places in queues: Redis is filled again
-- from these. Who has had a trip since they arrived holds no place, though nobody told of it while Redis was away.
SELECT user_id, zone, availability_status, is_online, vehicle_type, version, updated_at, NULL AS trip_id,
       current_location[1] AS lat, current_location[0] AS lng, location_updated_at, queued_at,
       CASE WHEN queue IS NOT NULL AND NOT EXISTS (
                SELECT FROM trip_requests t
                 WHERE (t.current_status = 'completed' OR t.current_status = 'cancelled') AND t.driver_id = d.user_id
                   AND t.locked_at > d.queued_at)
            THEN queue END AS queue
  FROM driver_details d
 WHERE zone = :zone AND is_online AND user_id > :after
 ORDER BY user_id LIMIT :page_size;

-- name: offline_holders_of_zone(zone, after, page_size)
-- A page, by id, of a zone's drivers who are offline and have an active trip: Redis is filled again from these, too.
SELECT d.user_id, d.zone, d.availability_status, d.is_online, d.vehicle_type, d.version, d.updated_at, t.id AS trip_id
  FROM trip_requests t JOIN driver_details d ON d.user_id = t.driver_id AND d.zone = t.zone
 WHERE t.zone = :zone AND t.current_status IN ('accepted', 'arrived', 'ongoing')
   AND NOT d.is_online AND d.user_id > :after
 ORDER BY d.user_id LIMIT :page_size;

-- name: online_driver_ids_of_zone(zone, after, page_size)
-- A page, by id, of those who are online in a zone: each of them has a presence, or is lost.
SELECT user_id
  FROM driver_details
 WHERE zone = :zone AND is_online AND user_id > :after
 ORDER BY user_id LIMIT :page_size;

-- name: places_of_drivers(driver_ids)
-- Where these drivers work, and with what; the version tells an older answer from a newer one.
SELECT user_id, zone, vehicle_type, version
  FROM driver_details
 WHERE user_id = ANY (:driver_ids::text[]);

-- name: online_among(zone, driver_ids)
-- Which of these drivers are online in the zone.
SELECT user_id
  FROM driver_details
 WHERE zone = :zone AND is_online AND user_id = ANY (:driver_ids::text[]);

-- name: save_positions(ids, lats, lngs, ats)!
-- Saves the last position of several drivers. An older position never replaces a newer one; one that lies ahead is of
-- a clock that was set back since.
UPDATE driver_details d
   SET current_location = point(n.lng, n.lat), location_updated_at = LEAST(n.at, now())
  FROM unnest(:ids::text[], :lats::float8[], :lngs::float8[], :ats::timestamptz[]) AS n (id, lat, lng, at)
 WHERE d.user_id = n.id AND (
       d.location_updated_at IS NULL OR d.location_updated_at < n.at OR d.location_updated_at > now()
   );

-- name: queue_place(driver_id)^
-- A driver's place in a queue. Who has had a trip since they arrived holds none.
SELECT CASE WHEN NOT EXISTS (
                SELECT FROM trip_requests t
                 WHERE (t.current_status = 'completed' OR t.current_status = 'cancelled') AND t.driver_id = d.user_id
                   AND t.locked_at > d.queued_at)
            THEN queue END AS queue, queued_at
  FROM driver_details d
 WHERE user_id = :driver_id;

-- name: queue_places(ids)
-- The places of several drivers in the queues of their zones.
SELECT user_id, zone, queue, queued_at
  FROM driver_details
 WHERE user_id = ANY (:ids::text[]);

-- name: set_queue_place(driver_id, queue, at_ms)!
-- Makes a driver's place in a queue (NULL: none) what it is in Redis since that time, in ms.
UPDATE driver_details
   SET queue = :queue::text, queued_at = to_timestamp(:at_ms::bigint / 1000.0)
 WHERE user_id = :driver_id;

-- name: save_queue_places(ids, queues, ats)!
-- Saves in which queues drivers stand, or that they stand in none, and since when. An older word never replaces a newer
-- one; one that lies ahead is of a clock that was set back since.
UPDATE driver_details d
   SET queue = n.queue, queued_at = n.at
  FROM unnest(:ids::text[], :queues::text[], :ats::timestamptz[]) AS n (id, queue, at)
 WHERE d.user_id = n.id AND (d.queued_at IS NULL OR d.queued_at < n.at OR d.queued_at > now());

-- name: commit_without_waiting()!
-- The transaction that follows does not wait for the disk. For positions only: the next one replaces a lost one.
SET LOCAL synchronous_commit = off;

-- name: drivers_by_id(ids)
-- Several drivers, each with their active trip.
SELECT d.user_id, d.zone, d.availability_status, d.is_online, d.vehicle_type, d.version, d.updated_at,
       t.id AS trip_id
  FROM driver_details d
  LEFT JOIN trip_requests t
    ON t.driver_id = d.user_id AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 WHERE d.user_id = ANY (:ids::text[]);
