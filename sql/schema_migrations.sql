-- The table in which dispatcher/ledger/migrate.py keeps which migrations this database has. The first migration
-- makes it and taking back the first one drops it, so it is in no migration and not in schema.sql.

-- name: schema_migrations_exists()$
-- True once the first migration was applied.
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: create_schema_migrations()#
CREATE TABLE schema_migrations (
    version    int PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL, -- SHA-256 of the up file
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: drop_schema_migrations()#
DROP TABLE schema_migrations;

-- name: list_applied()
SELECT version, name, checksum, applied_at FROM schema_migrations ORDER BY version;

-- name: record_applied(version, name, checksum)!
INSERT INTO schema_migrations (version, name, checksum) VALUES (:version, :name, :checksum);

-- name: forget_applied(version)!
DELETE FROM schema_migrations WHERE version = :version;

-- name: lock_migrations(key)$
-- Held by the session: servers that start at once migrate one after the other.
SELECT pg_advisory_lock(:key);

-- name: count_server_sessions()$
-- Sessions of servers on this database: each names itself when it connects.
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name IN ('dispatcher', 'dispatcher-ledger');

-- name: limit_migration_wait(turn)$
-- Whoever comes after a transaction that waits for a table waits behind it: no commit of a server for longer than this.
-- Postgres ends an autovacuum for whoever has waited for it as long as deadlock_timeout: the second of ten turns lasts
-- as long where tables are vacuumed or analyzed.
SELECT set_config('lock_timeout', CASE
    WHEN :turn::int % 10 = 2
     AND EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE datname = current_database()
                 UNION ALL SELECT FROM pg_stat_progress_analyze WHERE datname = current_database())
    THEN (SELECT (setting::int + 200) || 'ms' FROM pg_settings WHERE name = 'deadlock_timeout')
    ELSE '200ms' END, true);
