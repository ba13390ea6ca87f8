-- How long trips waited for their first accept, in seconds, by hour of the last day: median, 90 % and 99 %.
-- Only trips that were accepted count; pending_too_long.sql has those that still wait.
-- Worry when the median is much higher than at the same hour of other days: offers are late, or drivers are few.
SELECT date_trunc('hour', c.created_at) AS hour, count(*) AS accepted,
       percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM a.created_at - c.created_at))
           AS p50_p90_p99_s
  FROM trip_events c
  JOIN LATERAL (SELECT e.created_at FROM trip_events e
                 WHERE e.trip_id = c.trip_id AND e.event = 'accepted' ORDER BY e.version LIMIT 1) a ON true
 WHERE c.version = 0 AND c.created_at > now() - interval '1 day'
 GROUP BY 1 ORDER BY 1 DESC;
