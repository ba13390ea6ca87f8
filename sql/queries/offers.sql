-- name: save_offers!
-- Offers that went out.
INSERT INTO trip_offers (trip_id, driver_id, wave, distance_m, offered_at, deadline)
SELECT * FROM unnest(:trips::text[], :drivers::text[], :waves::int[], :distances::float8[],
                     :offered::timestamptz[], :deadlines::timestamptz[])
ON CONFLICT (trip_id, driver_id, wave) DO NOTHING;

-- name: save_outcomes!
-- What became of offers; the first outcome stands.
UPDATE trip_offers o
   SET outcome = n.outcome, outcome_at = n.at
  FROM unnest(:trips::text[], :drivers::text[], :waves::int[], :outcomes::text[],
              :ats::timestamptz[]) AS n (trip_id, driver_id, wave, outcome, at)
 WHERE o.trip_id = n.trip_id AND o.driver_id = n.driver_id AND o.wave = n.wave AND o.outcome = 'open';
