-- Two roles of least privilege: dispatcher_owner owns the schema and migrates it, dispatcher_app serves.
-- Run as a superuser in the database of the dispatcher, before the first migration and again after each one:
--   psql "$DATABASE_URL" -f sql/roles.sql
-- It changes nothing that is right already. Passwords are set with \password, which keeps them out of logs and
-- process lists. What dispatcher_app gets is what sql/preflight.sql asks for at start, and a test compares the two.

DO $$
DECLARE
    needed record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dispatcher_owner') THEN
        CREATE ROLE dispatcher_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dispatcher_app') THEN
        CREATE ROLE dispatcher_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
    -- Postgres 14 lets everyone make tables here.
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    GRANT USAGE, CREATE ON SCHEMA public TO dispatcher_owner;
    GRANT USAGE ON SCHEMA public TO dispatcher_app;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());

    FOR needed IN
        SELECT * FROM (VALUES
            ('schema_migrations', 'SELECT'),
            ('trip_requests', 'SELECT, INSERT, UPDATE'),
            ('driver_details', 'SELECT, INSERT, UPDATE'),
            ('trip_events', 'SELECT, INSERT'),
            ('idempotency_keys', 'SELECT, INSERT, UPDATE, DELETE'),
            ('trip_offers', 'SELECT, INSERT, UPDATE'),
            ('trip_races', 'SELECT, INSERT'),
            ('zone_authorities', 'SELECT, INSERT, UPDATE')
        ) AS tables (name, privileges)
        WHERE to_regclass(name) IS NOT NULL
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC, dispatcher_app', needed.name);
        EXECUTE format('GRANT %s ON %I TO dispatcher_app', needed.privileges, needed.name);
    END LOOP;
END
$$;
