-- What must hold of trips, drivers and histories at any moment. Each query gives the violations: whose (subject), and
-- in which way (detail). There is never a row.

-- name: drivers_with_two_trips()
-- Drivers with more than one active trip.
SELECT driver_id AS subject, string_agg(id, ' ' ORDER BY id) AS detail
  FROM trip_requests WHERE current_status IN ('accepted', 'arrived', 'ongoing')
 GROUP BY driver_id HAVING count(*) > 1;

-- name: trips_with_two_holders()
-- Trips that were accepted a second time without having been released in between.
SELECT trip_id AS subject, 'version ' || version AS detail
  FROM (SELECT trip_id, version, event, lag(event) OVER (PARTITION BY trip_id ORDER BY version) AS before
          FROM trip_events WHERE event IN ('accepted', 'released')) e
 WHERE event = 'accepted' AND before = 'accepted';

-- name: drivers_in_two_trips_at_once()
-- Drivers who, by the history, had not finished with one trip when they accepted the next.
SELECT driver_id AS subject, trip_id || ' until ' || until_at || ', ' || next_trip || ' from ' || next_at AS detail
  FROM (SELECT driver_id, trip_id, until_at,
               lead(trip_id) OVER w AS next_trip, lead(from_at) OVER w AS next_at
          FROM (SELECT trip_id, event, payload ->> 'driver_id' AS driver_id, created_at AS from_at,
                       coalesce(lead(created_at) OVER (PARTITION BY trip_id ORDER BY version), 'infinity') AS until_at
                  FROM trip_events WHERE event IN ('accepted', 'released', 'completed', 'cancelled')) held
         WHERE event = 'accepted'
        WINDOW w AS (PARTITION BY driver_id ORDER BY from_at, until_at)) s
 WHERE next_at < until_at;

-- name: histories_with_gaps()
-- Trips whose history is not one event for each version from 0 to the present one.
SELECT t.id AS subject, 'version ' || t.version || ', events ' || count(e.version) AS detail
  FROM trip_requests t LEFT JOIN trip_events e ON e.trip_id = t.id
 GROUP BY t.id, t.version
HAVING count(e.version) <> t.version + 1 OR min(e.version) <> 0 OR max(e.version) <> t.version;

-- name: states_unlike_history()
-- Trips whose state or driver is not the one that their last event gives.
SELECT t.id AS subject, t.current_status || ' after ' || e.event AS detail
  FROM trip_requests t
  JOIN LATERAL (SELECT event, payload FROM trip_events WHERE trip_id = t.id
                 ORDER BY version DESC LIMIT 1) e ON true
 WHERE e.payload ->> 'current_status' IS DISTINCT FROM t.current_status
    OR e.payload ->> 'driver_id' IS DISTINCT FROM t.driver_id;

-- name: offline_holders()
-- Drivers who are offline with a trip that has not started.
SELECT t.driver_id AS subject, t.id AS detail
  FROM trip_requests t JOIN driver_details d ON d.user_id = t.driver_id
 WHERE t.current_status IN ('accepted', 'arrived') AND NOT d.is_online;

-- name: answers_without_effect()
-- Stored answers that show a version of a trip which its history does not have.
SELECT k.user_id AS subject, k.endpoint || ' ' || k.idempotency_key AS detail
  FROM (SELECT user_id, endpoint, idempotency_key, response_payload::jsonb -> 'trip' AS trip
          FROM idempotency_keys WHERE response_payload::jsonb ? 'trip') k
 WHERE NOT EXISTS (SELECT FROM trip_events e
                    WHERE e.trip_id = k.trip ->> 'id' AND e.version = (k.trip ->> 'version')::int);

-- name: outcomes_before_offers()
-- Offers that ended before they were made.
SELECT trip_id AS subject, 'wave ' || wave || ' to ' || driver_id || ' ' || outcome || ' before it was made' AS detail
  FROM trip_offers WHERE outcome_at < offered_at;

-- name: winning_offers_ended_otherwise()
-- Winners who held an open offer of the trip that, by its row, came to something else.
SELECT o.trip_id AS subject, 'wave ' || o.wave || ' to the winner ' || o.driver_id || ' ' || o.outcome AS detail
  FROM trip_events e
  JOIN LATERAL (SELECT * FROM trip_offers latest
                 WHERE latest.trip_id = e.trip_id AND latest.driver_id = e.payload ->> 'driver_id' AND latest.wave > 0
                   AND latest.offered_at <= e.created_at
                 ORDER BY latest.offered_at DESC LIMIT 1) o ON true
 WHERE e.event = 'accepted' AND o.deadline > e.created_at AND o.outcome NOT IN ('accepted', 'open')
   AND o.outcome_at >= e.created_at;

-- name: lost_answers(trips, versions)
-- Versions of trips that clients were told of and that the history does not have.
SELECT a.trip AS subject, 'version ' || a.version AS detail
  FROM unnest(:trips::text[], :versions::int[]) AS a (trip, version)
 WHERE NOT EXISTS (SELECT FROM trip_events e WHERE e.trip_id = a.trip AND e.version = a.version);
