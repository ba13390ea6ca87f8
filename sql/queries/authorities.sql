-- name: add_authorities(zones)!
-- Zones that are new: Redis decides about them.
INSERT INTO zone_authorities (zone) SELECT unnest(:zones::text[]) ON CONFLICT (zone) DO NOTHING;

-- name: authorities_since(since)
-- Who decides about the zones for which that has changed since a moment.
SELECT zone, engine, fence, changed_at, held_until > clock_timestamp() AS is_held
  FROM zone_authorities WHERE changed_at >= :since OR engine = 'postgres';

-- name: take_from_redis(zones, server, held_s)
-- Postgres alone decides about these zones from now on, unless it does already.
UPDATE zone_authorities
   SET engine = 'postgres', fence = fence + 1, changed_at = clock_timestamp(), changed_by = :server,
       held_until = clock_timestamp() + make_interval(secs => :held_s)
 WHERE zone = ANY (:zones::text[]) AND engine = 'redis'
RETURNING zone, engine, fence, changed_at, true AS is_held;

-- name: hold_authorities(zones, held_s)!
-- This server cannot reach the Redis of these zones: nobody gives them back before the time is over.
UPDATE zone_authorities SET held_until = clock_timestamp() + make_interval(secs => :held_s)
 WHERE zone = ANY (:zones::text[]) AND engine = 'postgres';

-- name: give_to_redis(zone, fence, server)
-- Redis decides about a zone again, unless a server cannot reach it. Waits for what is being committed without it.
UPDATE zone_authorities
   SET engine = 'redis', fence = fence + 1, changed_at = clock_timestamp(), changed_by = :server
 WHERE zone = :zone AND engine = 'postgres' AND fence = :fence AND held_until <= clock_timestamp()
RETURNING zone, engine, fence, changed_at, false AS is_held;

-- name: count_servers()$
-- How many server processes there are: each holds one session that commits.
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'dispatcher-ledger';

-- name: get_authority(zone)^
-- Who decides about a zone.
SELECT zone, engine, fence, changed_at FROM zone_authorities WHERE zone = :zone;

-- name: drivers_to_claim(ids)
-- Several drivers, each with their active trip and the time of their last position.
SELECT d.user_id, d.zone, d.availability_status, d.is_online, d.vehicle_type, d.version, d.updated_at,
       t.id AS trip_id, d.location_updated_at
  FROM driver_details d
  LEFT JOIN trip_requests t
    ON t.driver_id = d.user_id AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 WHERE d.user_id = ANY (:ids::text[]);

-- name: open_offers_of_trips(ids)
-- Who holds an open offer of which of these trips.
SELECT trip_id, driver_id FROM trip_offers
 WHERE trip_id = ANY (:ids::text[]) AND outcome = 'open' AND deadline > now();

-- name: answers_of_keys(users, endpoints, keys)
-- The stored answers of several keys that have not expired.
SELECT k.user_id, k.endpoint, k.idempotency_key, k.request_fingerprint, k.status_code, k.response_payload, k.expires_at
  FROM unnest(:users::text[], :endpoints::text[], :keys::text[]) AS asked (user_id, endpoint, idempotency_key)
  JOIN idempotency_keys k USING (user_id, endpoint, idempotency_key)
 WHERE k.expires_at > now();

-- name: offers_to_make(zone, connected, radius_m, size, fix_age_s, max_offers, max_rows)
-- Of a zone's trips that wait and are on offer to nobody, the oldest first: the nearest of the connected drivers who
-- may have them. A driver who let an offer pass is asked again last.
SELECT t.*, NULL AS driver_vehicle_type, near.driver_id AS offered_driver, near.distance_m,
       near.open_offers,
       (SELECT coalesce(max(o.wave), 0) FROM trip_offers o WHERE o.trip_id = t.id) AS last_wave
  FROM (SELECT * FROM trip_requests waiting
         WHERE waiting.zone = :zone AND waiting.current_status = 'pending'
           AND NOT EXISTS (SELECT FROM trip_offers o
                            WHERE o.trip_id = waiting.id AND o.outcome = 'open' AND o.deadline > now())
         ORDER BY waiting.created_at LIMIT :max_rows) t
 CROSS JOIN LATERAL (
       SELECT d.user_id AS driver_id, distance_m(d.current_location, t.pickup_location) AS distance_m,
              (SELECT count(*) FROM trip_offers o
                WHERE o.driver_id = d.user_id AND o.outcome = 'open' AND o.deadline > now()) AS open_offers
         FROM driver_details d
        WHERE d.user_id = ANY (:connected::text[]) AND d.zone = :zone AND d.is_online
          AND d.availability_status = 'available' AND d.vehicle_type = t.vehicle_type
          AND d.location_updated_at > now() - make_interval(secs => :fix_age_s)
          AND distance_m(d.current_location, t.pickup_location) <= :radius_m
          AND NOT EXISTS (SELECT FROM trip_requests active
                           WHERE active.driver_id = d.user_id
                             AND active.current_status IN ('accepted', 'arrived', 'ongoing'))
          AND NOT EXISTS (SELECT FROM trip_offers o
                           WHERE o.trip_id = t.id AND o.driver_id = d.user_id AND o.outcome = 'declined')
          AND NOT EXISTS (SELECT FROM trip_events e
                           WHERE e.trip_id = t.id AND e.event = 'released'
                             AND coalesce(e.payload ->> 'former_driver', e.actor_id) = d.user_id)
          AND (SELECT count(*) FROM trip_offers o
                WHERE o.driver_id = d.user_id AND o.outcome = 'open' AND o.deadline > now()) < :max_offers
        ORDER BY (SELECT count(*) FROM trip_offers o WHERE o.trip_id = t.id AND o.driver_id = d.user_id),
                 d.current_location <-> t.pickup_location
        LIMIT :size) near
 ORDER BY t.created_at, near.distance_m;

-- name: open_offers_of_driver(driver_id, max_rows)
-- The pending trips that a driver holds an open offer of.
SELECT t.*, NULL AS driver_vehicle_type, o.deadline
  FROM trip_offers o JOIN trip_requests t ON t.id = o.trip_id
 WHERE o.driver_id = :driver_id AND o.outcome = 'open' AND o.deadline > now() AND t.current_status = 'pending'
 ORDER BY o.deadline LIMIT :max_rows;

-- name: position_of_driver(driver_id)^
-- Where a driver was last, in degrees.
SELECT current_location[1] AS lat, current_location[0] AS lng, location_updated_at FROM driver_details
 WHERE user_id = :driver_id AND current_location IS NOT NULL;
