-- name: save_offers(trips, drivers, waves, distances, offered, deadlines)!
-- Offers that went out.
INSERT INTO trip_offers (trip_id, driver_id, wave, distance_m, offered_at, deadline)
SELECT * FROM unnest(:trips::text[], :drivers::text[], :waves::int[], :distances::float8[],
                     :offered::timestamptz[], :deadlines::timestamptz[])
ON CONFLICT (trip_id, driver_id, wave) DO NOTHING;

-- name: save_outcomes(trips, drivers, outcomes, ats)!
-- What became of offers; the first outcome stands.
UPDATE trip_offers o
   SET outcome = n.outcome, outcome_at = n.at
  FROM (SELECT DISTINCT ON (trip_id, driver_id) *
          FROM unnest(:trips::text[], :drivers::text[], :outcomes::text[], :ats::timestamptz[])
               AS u (trip_id, driver_id, outcome, at)
         ORDER BY trip_id, driver_id, at) n
 WHERE o.trip_id = n.trip_id AND o.driver_id = n.driver_id AND o.outcome = 'open';

-- name: close_overdue_offers()!
-- Offers whose outcome was lost with the server that knew it: the history of the trip tells.
UPDATE trip_offers o
   SET outcome = CASE WHEN EXISTS (SELECT FROM trip_events e
                                    WHERE e.trip_id = o.trip_id AND e.event = 'accepted'
                                      AND e.actor_id = o.driver_id AND e.created_at >= o.offered_at)
                      THEN 'accepted' ELSE 'expired' END,
       outcome_at = o.deadline
 WHERE o.outcome = 'open' AND o.deadline < now() - interval '1 minute';
