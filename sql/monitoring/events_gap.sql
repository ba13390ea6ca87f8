-- Trips whose history does not lead to their version. No row, ever.
SELECT t.id, t.version, count(e.version) AS events, max(e.version) AS last_event
  FROM trip_requests t LEFT JOIN trip_events e ON e.trip_id = t.id
 GROUP BY t.id, t.version
HAVING count(e.version) <> t.version + 1 OR max(e.version) <> t.version;
