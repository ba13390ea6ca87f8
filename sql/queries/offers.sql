-- name: save_offers(trips, drivers, waves, distances, offered, deadlines, scores, operators)!
-- Saves offers that were sent to drivers.
INSERT INTO trip_offers AS o (trip_id, driver_id, wave, distance_m, offered_at, deadline, score, offered_by)
SELECT DISTINCT ON (trip_id, driver_id, wave) *
  FROM unnest(:trips::text[], :drivers::text[], :waves::int[], :distances::float8[],
              :offered::timestamptz[], :deadlines::timestamptz[], :scores::jsonb[], :operators::text[])
       AS n (trip_id, driver_id, wave, distance_m, offered_at, deadline, score, offered_by)
 ORDER BY trip_id, driver_id, wave, offered_at DESC
-- A wave goes on after a head start, and may ask a driver once more who let it pass: the later offer stands.
ON CONFLICT (trip_id, driver_id, wave) DO UPDATE
   SET distance_m = excluded.distance_m, offered_at = excluded.offered_at, deadline = excluded.deadline,
       score = excluded.score, offered_by = excluded.offered_by, outcome = 'open', outcome_at = NULL
 WHERE o.offered_at < excluded.offered_at;

-- name: save_outcomes(trips, drivers, outcomes, ats)
-- Saves what came of offers; tells, by their place, the outcomes without an offer. An outcome is that of the latest offer
-- made until then (one that has expired, of the latest whose time was over), and the first outcome of an offer stands.
WITH seen AS (
    SELECT u.trip_id, u.driver_id, u.outcome, u.at, u.place, of.wave
      FROM unnest(:trips::text[], :drivers::text[], :outcomes::text[], :ats::timestamptz[]) WITH ORDINALITY
           AS u (trip_id, driver_id, outcome, at, place)
      LEFT JOIN LATERAL (
               SELECT o.wave FROM trip_offers o
                WHERE o.trip_id = u.trip_id AND o.driver_id = u.driver_id AND o.wave > 0
                  AND o.offered_at <= u.at AND (u.outcome <> 'expired' OR o.deadline <= u.at)
                ORDER BY o.offered_at DESC, o.wave DESC LIMIT 1) of ON true),
saved AS (
    UPDATE trip_offers o
       SET outcome = n.outcome, outcome_at = n.at
      FROM (SELECT DISTINCT ON (trip_id, driver_id, wave) * FROM seen
             WHERE wave IS NOT NULL ORDER BY trip_id, driver_id, wave, at) n
     WHERE o.trip_id = n.trip_id AND o.driver_id = n.driver_id AND o.wave = n.wave AND o.outcome = 'open')
SELECT place FROM seen WHERE wave IS NULL ORDER BY place;

-- name: close_overdue_offers()!
-- Closes offers that are past their deadline: the server that knew the outcome did not live to save it. The trip's
-- history says whether the driver accepted, or who was faster; what it does not say counts as let pass.
UPDATE trip_offers o
   SET outcome = ended.outcome, outcome_at = ended.at
  FROM (SELECT late.trip_id, late.driver_id, late.wave,
               CASE WHEN e.is_theirs THEN 'accepted' WHEN e.at <= late.deadline THEN 'withdrawn' ELSE 'expired' END
                   AS outcome,
               CASE WHEN e.is_theirs OR e.at <= late.deadline THEN e.at ELSE late.deadline END AS at
          FROM trip_offers late
          LEFT JOIN LATERAL (
                   SELECT created_at AS at, event = 'accepted' AND payload ->> 'driver_id' = late.driver_id AS is_theirs
                     FROM trip_events
                    WHERE trip_id = late.trip_id AND event IN ('accepted', 'cancelled', 'expired')
                      AND created_at >= late.offered_at
                      AND NOT EXISTS (SELECT FROM trip_offers next
                                       WHERE next.trip_id = late.trip_id AND next.driver_id = late.driver_id
                                         AND next.offered_at > late.offered_at AND next.offered_at <= created_at)
                    ORDER BY version LIMIT 1) e ON true
         WHERE late.outcome = 'open' AND late.deadline < now() - interval '1 minute') ended
 WHERE o.trip_id = ended.trip_id AND o.driver_id = ended.driver_id AND o.wave = ended.wave AND o.outcome = 'open';

-- name: offers_of_trip(trip_id, driver_id)
-- The offers of a trip in their order, to one driver or (with NULL) to all, each with what came of it. A decline that was
-- saved before its offer (wave 0) is told with the offer.
SELECT driver_id, wave, distance_m, offered_at, deadline, outcome, outcome_at, score, offered_by
  FROM trip_offers o
 WHERE trip_id = :trip_id AND (:driver_id::text IS NULL OR driver_id = :driver_id)
   AND NOT (wave = 0 AND EXISTS (SELECT FROM trip_offers d
                                  WHERE d.trip_id = o.trip_id AND d.driver_id = o.driver_id AND d.wave > 0
                                    AND d.outcome = 'declined' AND d.outcome_at = o.outcome_at))
 ORDER BY offered_at, wave, distance_m, driver_id;

-- name: save_races(trips, drivers, versions, ats, most)!
-- Saves who came too late for an accept that was committed, the first ones of each.
INSERT INTO trip_races (trip_id, version, driver_id, tried_at)
SELECT trip_id, version, driver_id, at
  FROM (SELECT trip_id, version, driver_id, at, row_number() OVER (PARTITION BY trip_id, version ORDER BY at) AS number
          FROM (SELECT DISTINCT ON (u.trip_id, e.version, u.driver_id)
                       u.trip_id, e.version, u.driver_id, greatest(u.at, e.created_at) AS at
                  FROM unnest(:trips::text[], :drivers::text[], :versions::int[], :ats::timestamptz[])
                       AS u (trip_id, driver_id, version, at)
                  JOIN LATERAL (SELECT version, event, created_at FROM trip_events
                                 WHERE trip_id = u.trip_id AND version <= u.version AND event IN ('accepted', 'released')
                                 ORDER BY version DESC LIMIT 1) e ON e.event = 'accepted'
                 ORDER BY u.trip_id, e.version, u.driver_id, u.at) first) n
 WHERE number + (SELECT count(*) FROM trip_races known
                  WHERE known.trip_id = n.trip_id AND known.version = n.version) <= :most
ON CONFLICT DO NOTHING;

-- name: races_of_trip(trip_id, driver_id)
-- Who came too late to accept a trip, one driver or (with NULL) all, in their order, and which version they lost.
SELECT version, driver_id, tried_at FROM trip_races
 WHERE trip_id = :trip_id AND (:driver_id::text IS NULL OR driver_id = :driver_id)
 ORDER BY tried_at, driver_id;
