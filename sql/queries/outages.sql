-- Outages: a server that lives and cannot tell the Redis of a zone of its connections holds a shared advisory lock.
-- The first key is that of all these locks, the second the zone's; the empty name stands for every zone.

-- name: give_notice(zones)!
-- Nobody takes these locks alone, so that nobody waits for one.
SELECT pg_try_advisory_lock_shared(1634623, hashtext(zone)) FROM unnest(:zones::text[]) AS zone;

-- name: withdraw_notice(zones)!
SELECT pg_advisory_unlock_shared(1634623, hashtext(zone)) FROM unnest(:zones::text[]) AS zone;

-- name: outage_noticed(zone)$
-- Whether any server has given notice of the zone.
SELECT EXISTS (
    SELECT FROM pg_locks
     WHERE locktype = 'advisory' AND classid = 1634623 AND objsubid = 2
       AND objid IN (hashtext(:zone)::oid, hashtext('')::oid)
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));
