-- What became of the offers of the last hour, by wave, with the mean distance from the driver to the pickup.
-- Later waves have fewer offers, which go further. 'open' are those that drivers still see.
-- Worry when most of them expire: apps do not show offers. Many in late waves mean that too few drivers are near.
SELECT wave, outcome, count(*), round(avg(distance_m)) AS mean_distance_m
  FROM trip_offers WHERE offered_at > now() - interval '1 hour'
 GROUP BY wave, outcome ORDER BY wave, outcome;
