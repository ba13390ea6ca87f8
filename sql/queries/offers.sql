-- name: save_offers(trips, drivers, waves, distances, offered, deadlines, scores, operators)!
-- Saves offers that were sent to drivers.
INSERT INTO trip_offers (trip_id, driver_id, wave, distance_m, offered_at, deadline, score, offered_by)
SELECT * FROM unnest(:trips::text[], :drivers::text[], :waves::int[], :distances::float8[],
                     :offered::timestamptz[], :deadlines::timestamptz[], :scores::jsonb[], :operators::text[])
ON CONFLICT (trip_id, driver_id, wave) DO NOTHING;

-- name: save_outcomes(trips, drivers, outcomes, ats)!
-- Saves what came of offers. The first outcome of an offer stands.
UPDATE trip_offers o
   SET outcome = n.outcome, outcome_at = n.at
  FROM (SELECT DISTINCT ON (trip_id, driver_id) *
          FROM unnest(:trips::text[], :drivers::text[], :outcomes::text[], :ats::timestamptz[])
               AS u (trip_id, driver_id, outcome, at)
         ORDER BY trip_id, driver_id, at) n
 WHERE o.trip_id = n.trip_id AND o.driver_id = n.driver_id AND o.outcome = 'open';

-- name: close_overdue_offers()!
-- Closes offers that are past their deadline: the server that knew the outcome did not live to save it. The trip's
-- history says whether the driver accepted.
UPDATE trip_offers o
   SET outcome = CASE WHEN EXISTS (SELECT FROM trip_events e
                                    WHERE e.trip_id = o.trip_id AND e.event = 'accepted'
                                      AND e.payload ->> 'driver_id' = o.driver_id AND e.created_at >= o.offered_at)
                      THEN 'accepted' ELSE 'expired' END,
       outcome_at = o.deadline
 WHERE o.outcome = 'open' AND o.deadline < now() - interval '1 minute';

-- name: offers_of_trip(trip_id, driver_id)
-- The offers of a trip in their order, to one driver or (with NULL) to all, each with what came of it.
SELECT driver_id, wave, distance_m, offered_at, deadline, outcome, outcome_at, score, offered_by
  FROM trip_offers
 WHERE trip_id = :trip_id AND (:driver_id::text IS NULL OR driver_id = :driver_id)
 ORDER BY offered_at, wave, distance_m, driver_id;
