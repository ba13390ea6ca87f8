-- Trips whose history is not one event for each version from 0 to the present one.
-- There is never a row: a trip and its event are written in one transaction.
-- Worry about any row: something other than apply_changes() has written to trip_requests or trip_events.
SELECT t.id, t.version, count(e.version) AS events, max(e.version) AS last_event
  FROM trip_requests t LEFT JOIN trip_events e ON e.trip_id = t.id
 GROUP BY t.id, t.version
HAVING count(e.version) <> t.version + 1 OR max(e.version) <> t.version;
