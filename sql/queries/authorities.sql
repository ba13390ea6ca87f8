-- name: add_authorities(zones)!
-- Zones that are new: Redis decides about them.
INSERT INTO zone_authorities (zone) SELECT unnest(:zones::text[]) ON CONFLICT (zone) DO NOTHING;

-- name: authorities_since(back_s, known)
-- Who decides about the zones for which that has changed within so many seconds (NULL: ever), and about those of
-- `known`, whose time may have been prolonged. Both are found by an index: there may be many zones.
SELECT zone, engine, fence, held_until > clock_timestamp() AS is_held
  FROM zone_authorities
 WHERE :back_s::float8 IS NULL OR changed_at >= now() - make_interval(secs => :back_s) OR zone = ANY (:known::text[]);

-- name: take_from_redis(zones, server, held_s)
-- Postgres alone decides about these zones from now on, unless it does already.
UPDATE zone_authorities
   SET engine = 'postgres', fence = fence + 1, changed_at = clock_timestamp(), changed_by = :server,
       held_until = clock_timestamp() + make_interval(secs => :held_s),
       alone_since = coalesce(alone_since, clock_timestamp())
 WHERE zone = ANY (:zones::text[]) AND engine = 'redis'
RETURNING zone, engine, fence, true AS is_held;

-- name: hold_authorities(zones, held_s)!
-- This server cannot reach the Redis of these zones: nobody gives them back before the time is over.
UPDATE zone_authorities SET held_until = clock_timestamp() + make_interval(secs => :held_s)
 WHERE zone = ANY (:zones::text[]) AND engine = 'postgres';

-- name: give_to_redis(zone, fence, server)
-- Redis decides about a zone again, unless a server cannot reach it. Waits for what is being committed without it.
UPDATE zone_authorities
   SET engine = 'redis', fence = fence + 1, changed_at = clock_timestamp(), changed_by = :server
 WHERE zone = :zone AND engine = 'postgres' AND fence = :fence AND held_until <= clock_timestamp()
RETURNING zone, engine, fence, false AS is_held;

-- name: alone_since(zones)
-- Since when Postgres has decided alone what the Redis of these zones lacks, and the time by the same clock.
SELECT zone, alone_since, clock_timestamp() AS now FROM zone_authorities WHERE zone = ANY (:zones::text[]);

-- name: decided_alone(zones, most)
-- How many events there were of each of these zones since Postgres decides alone about one of them; `most` are looked at.
SELECT split_part(trip_id, '_', 1) AS zone, count(*) AS events
  FROM (SELECT trip_id FROM trip_events
         WHERE created_at >= (SELECT min(alone_since) FROM zone_authorities WHERE zone = ANY (:zones::text[]))
         LIMIT :most) decided
 WHERE split_part(trip_id, '_', 1) = ANY (:zones::text[])
 GROUP BY 1;

-- name: is_loaded(zone, fence)!
-- The zone's Redis was loaded with all that was decided without it, unless it has been left again since.
UPDATE zone_authorities SET alone_since = NULL
 WHERE zone = :zone AND fence = :fence AND engine = 'redis' AND alone_since IS NOT NULL;

-- name: count_servers()$
-- How many server processes there are: each holds one session that commits.
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'dispatcher-ledger';

-- name: authorities_of(zones)
-- Who decides about these zones.
SELECT zone, engine, fence FROM zone_authorities WHERE zone = ANY (:zones::text[]);

-- name: rows_to_claim(trips, offered, drivers, rivals, owners, users, endpoints, keys)
-- What several claims look at, as it is at one moment, which is what a statement sees: whoever sees an effect sees its
-- key's answer, too. `kind` says what a row is: the time as `updated_at`, whatever else there is; a trip of `trips`, or the active one of an owner; a driver of `drivers`
-- with the id of their active trip, unless the trip that they are after (the one of `rivals` at the same place; NULL:
-- none) is not to be had; an open offer of a trip of `offered`; the stored answer of a key, unless it has expired.
SELECT 'trip' AS kind, t.id, t.zone, t.customer_id, t.driver_id, t.current_status, t.version, t.locked_at,
       t.vehicle_type, t.pickup_location, t.dropoff_location, t.created_at, t.updated_at, t.accepted_at, t.arrived_at,
       t.trip_start_time, t.completed_at, t.cancelled_at, t.expired_at, t.cancel_reason,
       d.vehicle_type AS driver_vehicle_type,
       NULL::text AS user_id, NULL::text AS availability_status, NULL::boolean AS is_online, NULL::text AS trip_id,
       NULL::timestamptz AS location_updated_at, NULL::text AS endpoint, NULL::text AS idempotency_key,
       NULL::text AS request_fingerprint, NULL::smallint AS status_code, NULL::text AS response_payload,
       NULL::timestamptz AS expires_at
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.id = ANY (:trips::text[])
 UNION ALL
SELECT 'trip', t.id, t.zone, t.customer_id, t.driver_id, t.current_status, t.version, t.locked_at,
       t.vehicle_type, t.pickup_location, t.dropoff_location, t.created_at, t.updated_at, t.accepted_at, t.arrived_at,
       t.trip_start_time, t.completed_at, t.cancelled_at, t.expired_at, t.cancel_reason, d.vehicle_type,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM trip_requests t LEFT JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.driver_id = ANY (:owners::text[]) AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 UNION ALL
SELECT 'driver', NULL, d.zone, NULL, NULL, NULL, d.version, NULL, d.vehicle_type, NULL, NULL, NULL, d.updated_at, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       d.user_id, d.availability_status, d.is_online, t.id, d.location_updated_at, NULL, NULL, NULL, NULL, NULL, NULL
  FROM unnest(:drivers::text[], :rivals::text[]) AS asked (driver_id, trip_id)
  JOIN driver_details d ON d.user_id = asked.driver_id
  LEFT JOIN trip_requests t
    ON t.driver_id = d.user_id AND t.current_status IN ('accepted', 'arrived', 'ongoing')
 WHERE asked.trip_id IS NULL
    OR (SELECT true FROM trip_requests wanted WHERE wanted.id = asked.trip_id AND wanted.current_status = 'pending')
 UNION ALL
SELECT 'offer', NULL, NULL, NULL, o.driver_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, o.trip_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM trip_offers o WHERE o.trip_id = ANY (:offered::text[]) AND o.outcome = 'open' AND o.deadline > now()
 UNION ALL
SELECT 'answer', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL,
       k.user_id, NULL, NULL, NULL, NULL, k.endpoint, k.idempotency_key, k.request_fingerprint, k.status_code,
       k.response_payload, k.expires_at
  FROM unnest(:users::text[], :endpoints::text[], :keys::text[]) AS asked (user_id, endpoint, idempotency_key)
  JOIN idempotency_keys k USING (user_id, endpoint, idempotency_key)
 WHERE k.expires_at > now()
 UNION ALL
SELECT 'clock', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, clock_timestamp(), NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;

-- name: drivers_to_offer(zones, connected)
-- Of the connected drivers, who may be offered a trip, in those of the zones where one waits.
SELECT zone, user_id FROM driver_details
 WHERE user_id = ANY (:connected::text[]) AND is_online AND availability_status = 'available'
   AND zone IN (SELECT zone FROM trip_requests
                 WHERE current_status = 'pending' AND zone = ANY (:zones::text[]));

-- name: offers_to_make(zone, connected, radius_m, size, fix_age_s, max_offers, max_rows)
-- Of a zone's trips that wait and are on offer to nobody, the oldest first: the nearest of the connected drivers who
-- may have them. A driver who let an offer pass is asked again last.
SELECT t.*, NULL AS driver_vehicle_type, near.driver_id AS offered_driver, near.distance_m,
       near.open_offers, clock_timestamp() AS offered_at,
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

-- name: lock_offers_of_driver(driver_id)!
-- Until the transaction ends, no other one offers a trip by hand to this driver. The first key is that of all these locks.
-- A lock that a server holds for so long is one of a server that hangs.
SELECT set_config('lock_timeout', '2s', true), pg_advisory_xact_lock(1634624, hashtext(:driver_id));

-- name: offer_to_driver(trip_id, driver_id, fix_age_s)^
-- What there is to know where an operator offers a pending trip to a driver: what would refuse them, and their open offer
-- of it.
SELECT distance_m(d.current_location, t.pickup_location) AS distance_m, d.current_location IS NOT NULL AS has_position,
       coalesce(d.location_updated_at > now() - make_interval(secs => :fix_age_s), false) AS is_fresh,
       EXISTS (SELECT FROM trip_offers o
                WHERE o.trip_id = t.id AND o.driver_id = d.user_id AND o.outcome = 'declined')
       OR EXISTS (SELECT FROM trip_events e
                   WHERE e.trip_id = t.id AND e.event = 'released'
                     AND coalesce(e.payload ->> 'former_driver', e.actor_id) = d.user_id) AS is_barred,
       (SELECT count(*) FROM trip_offers o
         WHERE o.driver_id = d.user_id AND o.outcome = 'open' AND o.deadline > now()) AS open_offers,
       (SELECT max(o.deadline) FROM trip_offers o
         WHERE o.trip_id = t.id AND o.driver_id = d.user_id AND o.outcome = 'open' AND o.deadline > now()) AS open_until,
       (SELECT coalesce(max(o.wave), 0) FROM trip_offers o WHERE o.trip_id = t.id) AS last_wave,
       clock_timestamp() AS offered_at
  FROM trip_requests t CROSS JOIN driver_details d
 WHERE t.id = :trip_id AND t.current_status = 'pending' AND d.user_id = :driver_id;

-- name: add_offer(trip_id, driver_id, wave, distance_m, offered_at, deadline, operator)!
-- Saves an offer by hand, unless a server has made an offer of that number to the driver since.
INSERT INTO trip_offers (trip_id, driver_id, wave, distance_m, offered_at, deadline, offered_by)
VALUES (:trip_id, :driver_id, :wave, :distance_m, :offered_at, :deadline, :operator)
ON CONFLICT (trip_id, driver_id, wave) DO NOTHING;

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
