-- What a server's role must be allowed. dispatcher/ledger/preflight.py asks once the migrations are applied.

-- name: missing_privileges()
-- What the role of this session may not do of all that the queries and functions do; or what it cannot see at all.
WITH needed (kind, name, privileges) AS (VALUES
    ('table', 'trip_requests', 'SELECT, INSERT, UPDATE'),
    ('table', 'driver_details', 'SELECT, INSERT, UPDATE'),
    ('table', 'trip_events', 'SELECT, INSERT'),
    ('table', 'idempotency_keys', 'SELECT, INSERT, UPDATE, DELETE'),
    ('table', 'trip_offers', 'SELECT, INSERT, UPDATE'),
    ('table', 'trip_races', 'SELECT, INSERT'),
    ('table', 'zone_authorities', 'SELECT, INSERT, UPDATE'),
    ('function', 'apply_changes', 'EXECUTE'),
    ('function', 'commit_changes', 'EXECUTE'),
    ('function', 'distance_m', 'EXECUTE'),
    ('function', 'is_position', 'EXECUTE')
), one_by_one AS (
    SELECT kind, name, privilege,
           CASE kind WHEN 'table' THEN to_regclass(name)::oid ELSE to_regproc(name)::oid END AS found
      FROM needed CROSS JOIN LATERAL string_to_table(privileges, ', ') AS privilege
)
SELECT kind, name, string_agg(privilege, ', ') AS privileges, bool_and(found IS NOT NULL) AS is_seen
  FROM one_by_one
 WHERE CASE WHEN found IS NULL THEN true
            WHEN kind = 'table' THEN NOT has_table_privilege(found, privilege)
            ELSE NOT has_function_privilege(found, privilege) END
 GROUP BY kind, name ORDER BY kind DESC, name;

-- name: has_authorities()$
-- Whether the database has the table that says who decides.
SELECT to_regclass('zone_authorities') IS NOT NULL;

-- name: count_degraded(zones)$
-- How many of these zones Postgres decides about alone.
SELECT count(*) FROM zone_authorities WHERE zone = ANY (:zones::text[]) AND engine = 'postgres';
