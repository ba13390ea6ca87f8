-- name: get_trip(trip_id)^
-- One trip, with its driver's vehicle type.
SELECT t.*, d.vehicle_type AS driver_vehicle_type
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.id = :trip_id;

-- name: live_trips_of_customer(customer_id, before, before_id, max_rows)
-- A page of a customer's trips that are pending or active, the newest first.
SELECT t.*, d.vehicle_type AS driver_vehicle_type
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.customer_id = :customer_id
   AND t.current_status IN ('pending', 'accepted', 'arrived', 'ongoing')
   AND (t.created_at, t.id::text) < (:before::timestamptz, :before_id::text)
 ORDER BY t.created_at DESC, t.id::text DESC LIMIT :max_rows;

-- name: live_trips_of_zone(zone, after, page_size)
-- A page, by id, of a zone's trips that are pending or active: Redis is filled again from these.
SELECT t.*, d.vehicle_type AS driver_vehicle_type
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.zone = :zone AND t.id > :after
   AND t.current_status IN ('pending', 'accepted', 'arrived', 'ongoing')
 ORDER BY t.id LIMIT :page_size;

-- name: trips_by_id(ids)
-- Several trips, each with its driver's vehicle type.
SELECT t.*, d.vehicle_type AS driver_vehicle_type
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.id = ANY (:ids::text[]);

-- name: offers_so_far(ids)
-- Of several trips: who declined it or gave it back, and the number of its last wave.
SELECT asked.id,
       ARRAY(SELECT o.driver_id FROM trip_offers o WHERE o.trip_id = asked.id AND o.outcome = 'declined'
             UNION
             SELECT coalesce(e.payload ->> 'former_driver', e.actor_id)
               FROM trip_events e WHERE e.trip_id = asked.id AND e.event = 'released') AS barred,
       (SELECT coalesce(max(o.wave), 0) FROM trip_offers o WHERE o.trip_id = asked.id) AS last_wave
  FROM unnest(:ids::text[]) AS asked (id);

-- name: events_of_trips(ids)
-- The histories of several trips, each from its creation on.
SELECT trip_id, version, event, actor_id, actor_role, payload, created_at FROM trip_events
 WHERE trip_id = ANY (:ids::text[]) ORDER BY trip_id, version;

-- name: events_of_zone_since(prefix, since, max_rows)
-- What happened to the trips whose ids begin with a prefix, from a moment on, the newest first.
SELECT trip_id, version, created_at FROM trip_events
 WHERE created_at >= :since AND starts_with(trip_id, :prefix)
 ORDER BY created_at DESC LIMIT :max_rows;

-- name: events_of_others(zones, back_s, own, max_rows)
-- The same of these zones and the last so many seconds, without what attempts have written whose token begins with `own`.
SELECT trip_id, version FROM trip_events
 WHERE created_at >= now() - make_interval(secs => :back_s) AND split_part(trip_id, '_', 1) = ANY (:zones::text[])
   AND NOT starts_with(coalesce(payload ->> 'attempt', ''), :own)
 ORDER BY created_at DESC LIMIT :max_rows;

-- name: pending_near(lng, lat, zone, vehicle_type, west, south, east, north, driver_id, offered, max_rows)
-- Pending trips of a zone inside a box around a position; of those, where `offered` is not NULL, only these. The order
-- is that of distances in degrees, which the index gives; the caller sorts by metres. Trips that the driver has
-- declined or given back are left out.
SELECT t.*, NULL AS driver_vehicle_type, distance_m(t.pickup_location, point(:lng, :lat)) AS distance_m
  FROM trip_requests t
 WHERE t.current_status = 'pending' AND t.zone = :zone AND t.vehicle_type = :vehicle_type
   AND t.pickup_location <@ box(point(:west, :south), point(:east, :north))
   AND NOT EXISTS (SELECT FROM trip_offers o
                    WHERE o.trip_id = t.id AND o.driver_id = :driver_id AND o.outcome = 'declined')
   AND NOT EXISTS (SELECT FROM trip_events e
                    WHERE e.trip_id = t.id AND e.event = 'released'
                      AND coalesce(e.payload ->> 'former_driver', e.actor_id) = :driver_id)
   AND (:offered::text[] IS NULL OR t.id = ANY (:offered::text[]))
 ORDER BY t.pickup_location <-> point(:lng, :lat) LIMIT :max_rows;

-- name: distance_to_pickup(trip_id, lat, lng)^
-- How far a position is from a trip's pickup, in metres.
SELECT distance_m(pickup_location, point(:lng, :lat)) AS distance_m FROM trip_requests WHERE id = :trip_id;

-- name: absence_from_trip(trip_id)^
-- Of a trip that has started: its customer, and for how long (s) its driver has been offline; NULL while they are online.
SELECT t.customer_id, CASE WHEN NOT d.is_online THEN extract(epoch FROM now() - d.updated_at)::float8 END AS absent_s
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.id = :trip_id AND t.current_status = 'ongoing';

-- name: event_of_attempt(trip_id, version, attempt)^
-- The event that an attempt wrote, if its commit went through.
SELECT trip_id, version, event FROM trip_events
 WHERE trip_id = :trip_id AND version = :version AND payload ->> 'attempt' = :attempt;

-- name: timeline(trip_id)
-- The history of a trip, from its creation on.
SELECT version, event, actor_id, actor_role, payload, created_at FROM trip_events
 WHERE trip_id = :trip_id ORDER BY version;

-- name: abandoned(older_than_s, zone, max_rows)
-- Trips that were accepted long ago and have not started, of one zone or (with NULL) of all.
SELECT id, driver_id, locked_at, current_status, version FROM trip_requests
 WHERE current_status IN ('accepted', 'arrived') AND trip_start_time IS NULL
   AND locked_at < now() - make_interval(secs => :older_than_s)
   AND (:zone::text IS NULL OR zone = :zone)
 ORDER BY locked_at LIMIT :max_rows;

-- name: zone_statistics(zone)
-- How many pending and active trips a zone has, by state.
SELECT current_status, count(*) AS trips FROM trip_requests
 WHERE zone = :zone AND current_status IN ('pending', 'accepted', 'arrived', 'ongoing')
 GROUP BY current_status;

-- name: live_trip_ids_of_zone(zone, after, page_size)
-- A page, by id, of a zone's trips that are pending or active.
SELECT id FROM trip_requests
 WHERE zone = :zone AND id > :after AND current_status IN ('pending', 'accepted', 'arrived', 'ongoing')
 ORDER BY id LIMIT :page_size;

-- name: contents_of_zones(zones)
-- What these zones have: drivers who are online, live trips, answers that have not expired. A row each.
SELECT 'drivers' AS kind, zone FROM driver_details
 WHERE is_online AND zone = ANY (:zones::text[]) GROUP BY zone
UNION ALL
SELECT 'trips', zone FROM trip_requests
 WHERE current_status IN ('pending', 'accepted', 'arrived', 'ongoing') AND zone = ANY (:zones::text[]) GROUP BY zone
UNION ALL
SELECT 'answers', zone FROM idempotency_keys
 WHERE expires_at > now() AND zone = ANY (:zones::text[]) GROUP BY zone;

-- name: last_events_of_zones(zones, since)
-- When something last happened to a trip of these zones, from a moment on. A trip's id begins with its zone.
SELECT split_part(trip_id, '_', 1) AS zone, max(created_at) AS created_at FROM trip_events
 WHERE created_at >= :since AND split_part(trip_id, '_', 1) = ANY (:zones::text[])
 GROUP BY 1;
