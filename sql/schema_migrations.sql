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

-- name: limit_migration_wait()!
-- Whoever comes after a transaction that waits for a table waits behind it: no commit of a server for longer than this.
SET LOCAL lock_timeout = '200ms';

-- name: limit_preview_wait()!
-- The transaction that follows locks tables as long as it takes to drop them; whoever uses one is waited for this long.
SET LOCAL lock_timeout = '5s';

-- name: list_objects()
-- What a schema is made of, for a comparison; in detail, a column's table and a function's text.
SELECT 'table' AS kind, c.relname::text AS name, '' AS detail FROM pg_class c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'column', c.relname || '.' || a.attname, c.relname::text
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'function', p.oid::regprocedure::text, p.prosrc FROM pg_proc p
 WHERE p.pronamespace = current_schema()::regnamespace
UNION ALL
SELECT 'type', t.typname::text, '' FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
 WHERE t.typnamespace = current_schema()::regnamespace AND (t.typtype IN ('d', 'e') OR c.relkind = 'c');

-- name: statement_that_counts(name)$
-- The statement that counts the rows of a table, with the name in quotes where it needs them.
SELECT format('SELECT count(*) FROM %I', :name::text);
