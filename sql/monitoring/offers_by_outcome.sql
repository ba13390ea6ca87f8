-- What came of the offers of the last hour, by wave. Many that expire: apps that do not show them.
SELECT wave, outcome, count(*), round(avg(distance_m)) AS mean_distance_m
  FROM trip_offers WHERE offered_at > now() - interval '1 hour'
 GROUP BY wave, outcome ORDER BY wave, outcome;
