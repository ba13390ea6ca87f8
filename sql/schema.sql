-- The whole schema, as it stands after every migration: `psql -f sql/schema.sql` makes it in an empty database.
--
-- This file is for readers. A real database is made by `dispatcher migrate up`, which also keeps its own table
-- schema_migrations; a database made from this file does not have it. tests/ledger/test_schema_file.py proves that
-- both ways end in the same schema. So a change of the schema is made in two places: a new migration, and here.
--
--   1. values     domains: what a zone, a trip's id, a position and a trip's state look like
--   2. tables     trip_requests, driver_details, trip_events, idempotency_keys, trip_offers, trip_races, zone_authorities
--   3. the commit the type of a change, and the functions that write a batch of changes
--
-- Positions are native points (x = longitude, y = latitude, in degrees), so no extension is needed.
-- Who may take a trip from which state to which is in dispatcher/core/transitions.py.

\set ON_ERROR_STOP on
BEGIN;

-- 1. Values ---------------------------------------------------------------------------------------------------------
-- The shape of a value is a domain and not a CHECK of its column: a domain is checked when its value is written,
-- a column's CHECK whenever anything of the row changes. CHECKs made an accept a third dearer.

\ir functions/is_position.sql
\ir functions/distance_m.sql

CREATE DOMAIN trip_name AS text CHECK (VALUE ~ '^[a-z0-9-]{1,32}_[A-Za-z0-9_-]{1,64}$');
COMMENT ON DOMAIN trip_name IS 'The id of a trip: its zone, an underscore, and a suffix.';

CREATE DOMAIN zone_name AS text CHECK (VALUE ~ '^[a-z0-9-]{1,32}$');
COMMENT ON DOMAIN zone_name IS 'The name of a zone, as the file of zones has it.';

CREATE DOMAIN place AS point CHECK (is_position(VALUE));
COMMENT ON DOMAIN place IS 'A position: longitude and latitude in degrees. See is_position().';

CREATE DOMAIN trip_status AS text CHECK (VALUE IN
    ('pending', 'accepted', 'arrived', 'ongoing', 'completed', 'cancelled', 'expired'));
COMMENT ON DOMAIN trip_status IS 'The states of a trip; dispatcher/core/transitions.py says which follows which.';

-- 2. Tables ---------------------------------------------------------------------------------------------------------

CREATE TABLE trip_requests (
    id               trip_name PRIMARY KEY,
    zone             zone_name NOT NULL,
    customer_id      text NOT NULL,
    driver_id        text,                                -- kept for the record once the trip is over
    current_status   trip_status NOT NULL DEFAULT 'pending',
    version          integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    locked_at        timestamptz,
    vehicle_type     text NOT NULL DEFAULT 'car',         -- what the customer asked for
    pickup_location  place NOT NULL,
    dropoff_location place,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),  -- the time of the last change
    -- When the trip last came to each state. A trip that its driver gives back loses the first two.
    accepted_at      timestamptz,
    arrived_at       timestamptz,
    trip_start_time  timestamptz,
    completed_at     timestamptz,
    cancelled_at     timestamptz,
    expired_at       timestamptz,
    cancel_reason    text,
    CONSTRAINT trip_requests_active_has_driver CHECK
        (driver_id IS NOT NULL OR current_status NOT IN ('accepted', 'arrived', 'ongoing', 'completed')),
    CONSTRAINT trip_requests_pending_has_none CHECK
        (driver_id IS NULL OR current_status NOT IN ('pending', 'expired'))
);
COMMENT ON TABLE trip_requests IS 'One row per trip: its present state. The history is in trip_events.';
COMMENT ON COLUMN trip_requests.version IS 'Raised by one with every change; what optimistic locking compares.';
COMMENT ON COLUMN trip_requests.locked_at IS 'When the present driver got the trip; empty while nobody has it.';

-- The invariant of the whole product: a driver never has two active trips. No code above can write a second one.
CREATE UNIQUE INDEX trip_requests_one_active_per_driver ON trip_requests (driver_id)
    WHERE current_status IN ('accepted', 'arrived', 'ongoing');
CREATE INDEX trip_requests_status_driver_version ON trip_requests (current_status, driver_id, version);
-- Only a pending trip is looked for by place, so the index is partial and an accept leaves its tree alone.
CREATE INDEX trip_requests_pickup ON trip_requests USING gist (pickup_location)
    WHERE current_status = 'pending';
CREATE INDEX trip_requests_locked ON trip_requests (locked_at) WHERE locked_at IS NOT NULL;
-- Not partial, although only live trips are asked for. The planner would also use an index of the live trips to find
-- a driver's active trip. If ANALYZE last ran in a quiet night, that index counts as empty, and at the next rush hour
-- each such question would read it from end to end.
CREATE INDEX trip_requests_customer ON trip_requests (customer_id, current_status);

-- A driver's row is written again with each position that is saved: the fillfactor leaves room for its next version.
CREATE TABLE driver_details (
    user_id             text PRIMARY KEY,
    zone                zone_name NOT NULL,
    availability_status text NOT NULL DEFAULT 'unavailable'  -- the driver's own choice
        CHECK (availability_status IN ('available', 'unavailable')),
    is_online           boolean NOT NULL DEFAULT false,
    vehicle_type        text NOT NULL DEFAULT 'car',
    version             integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    current_location    place,                               -- the last position that was saved
    location_updated_at timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    queue               zone_name,                           -- in which the driver waits, if any
    queued_at           timestamptz
) WITH (fillfactor = 80);
COMMENT ON TABLE driver_details IS 'One row per driver. Their active trip is the one in trip_requests.';
COMMENT ON COLUMN driver_details.queue IS 'The queue of the zone in which the driver waits, as Redis last told; empty for none.';
COMMENT ON COLUMN driver_details.queued_at IS 'When the driver arrived in the queue; without one, when they left the last one.';

CREATE INDEX driver_details_location ON driver_details USING gist (current_location);
CREATE INDEX driver_details_online ON driver_details (zone) WHERE is_online;

-- No foreign key to trip_requests: only apply_changes() writes here, in the transaction that holds the lock of the
-- trip's row. A foreign key's check of each row would cost a fifth of an accept.
CREATE TABLE trip_events (
    trip_id    text NOT NULL,
    version    integer NOT NULL CHECK (version >= 0),        -- the trip's version after the event
    event      text NOT NULL CHECK (event IN
        ('created', 'accepted', 'arrived', 'started', 'completed', 'released', 'cancelled', 'expired')),
    actor_id   text NOT NULL,
    actor_role text NOT NULL CHECK (actor_role IN ('driver', 'customer', 'admin', 'system')),
    payload    jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trip_id, version)
);
COMMENT ON TABLE trip_events IS 'One row per version of a trip, from its creation on. Replayed in order, the rows give its state.';

CREATE INDEX trip_events_created ON trip_events USING brin (created_at) WITH (autosummarize = on);

CREATE TABLE idempotency_keys (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key     text NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    user_id             text NOT NULL,
    endpoint            text NOT NULL,
    zone                text NOT NULL,
    request_payload     jsonb NOT NULL,
    request_fingerprint text NOT NULL CHECK (length(request_fingerprint) = 64  -- SHA-256 in hexadecimal
        AND translate(request_fingerprint, '0123456789abcdef', '') = ''),
    response_payload    text NOT NULL,
    status_code         smallint NOT NULL CHECK (status_code BETWEEN 200 AND 299),
    expires_at          timestamptz NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, endpoint, idempotency_key)
);
COMMENT ON TABLE idempotency_keys IS 'Answers by their Idempotency-Key. A row is written in the transaction of its effect.';
COMMENT ON COLUMN idempotency_keys.response_payload IS 'The answer''s body as it was sent; replayed byte for byte, so text and not jsonb.';

CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

CREATE TABLE trip_offers (
    trip_id    text NOT NULL,
    driver_id  text NOT NULL,
    wave       integer NOT NULL CHECK (wave >= 0),
    distance_m double precision CHECK (distance_m >= 0),     -- from the driver to the pickup, when it was offered
    offered_at timestamptz NOT NULL,
    deadline   timestamptz,
    outcome    text NOT NULL DEFAULT 'open' CHECK (outcome IN
        ('open', 'accepted', 'declined', 'expired', 'withdrawn')),
    outcome_at timestamptz,
    score      jsonb,
    offered_by text,
    PRIMARY KEY (trip_id, driver_id, wave)
);
COMMENT ON TABLE trip_offers IS 'One row per offer. Wave 0: the driver declined without having been offered the trip.';
COMMENT ON COLUMN trip_offers.score IS
    'Of an offer that a round of matching made: the score in seconds of way, its parts, and the next three drivers.';
COMMENT ON COLUMN trip_offers.offered_by IS
    'Of an offer that an operator made by hand: the operator. NULL: a wave made it.';

CREATE INDEX trip_offers_driver ON trip_offers (driver_id, offered_at);
CREATE INDEX trip_offers_open ON trip_offers (deadline) WHERE outcome = 'open';

CREATE TABLE trip_races (
    trip_id   text NOT NULL,
    version   integer NOT NULL,                              -- of the accept that won
    driver_id text NOT NULL,                                 -- who lost
    tried_at  timestamptz NOT NULL,
    PRIMARY KEY (trip_id, version, driver_id)
);
COMMENT ON TABLE trip_races IS
    'Drivers who came too late to accept a trip: the first hundred of each accept, as far as no server died with them.';

CREATE TABLE zone_authorities (
    zone       zone_name PRIMARY KEY,
    engine     text NOT NULL DEFAULT 'redis' CHECK (engine IN ('redis', 'postgres')),
    fence      bigint NOT NULL DEFAULT 0,                 -- raised with each change of the engine
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by text NOT NULL DEFAULT '',                  -- the server that changed it
    held_until timestamptz NOT NULL DEFAULT '-infinity',  -- until then, some server cannot reach the zone's Redis
    alone_since timestamptz
);
COMMENT ON TABLE zone_authorities IS
    'Who decides about a zone: Redis, or Postgres alone while a server cannot reach its Redis. See docs/architecture.md.';
COMMENT ON COLUMN zone_authorities.fence IS 'What a change was decided under must still hold when it is committed.';
COMMENT ON COLUMN zone_authorities.alone_since IS
    'Since when Postgres has decided alone what Redis has not been loaded with. NULL: Redis has been loaded since.';
CREATE INDEX zone_authorities_changed ON zone_authorities (changed_at);

-- 3. The commit -----------------------------------------------------------------------------------------------------
-- A server gathers changes and commits a batch of them with one call of apply_changes(). If a row breaks a
-- constraint, the batch goes to commit_changes(), where that row fails alone.

CREATE TYPE ledger_change AS (
    idx             integer,          -- the place in the batch, from 0
    -- The trip, if the change is about one.
    trip_id         text,
    is_creation     boolean,
    expect_version  integer,          -- guard: the version that the trip must have
    sources         text[],           -- guard: the states that the trip may be in
    to_status       text,
    driver_id       text,             -- whose the trip is afterwards; NULL for nobody's
    required_driver text,             -- guard: must be online and available in `zone` and free; who accepts
    zone            text,
    customer_id     text,
    vehicle_type    text,
    pickup          point,
    dropoff         point,
    reason          text,             -- of a cancellation
    event           text,             -- the event to write; NULL if the trip itself does not change
    actor_id        text,
    actor_role      text,
    payload         jsonb,            -- of the event
    at              timestamptz,
    -- The driver's own state, if it changes.
    set_driver      text,             -- whose state
    set_zone        text,
    set_online      boolean,
    set_available   text,
    set_vehicle     text,
    expect_driver_version integer,    -- guard: the version of the driver's row; -1 if there must be none
    -- An offer, if one is declined.
    declines        text,             -- the driver who declines `trip_id`
    -- The answer to keep, if the request had an Idempotency-Key.
    idem_user       text,
    idem_endpoint   text,
    idem_key        text,
    request_payload jsonb,
    fingerprint     text,
    response        text,
    status_code     smallint,
    expires_at      timestamptz,
    fence           bigint,           -- guard: the fence of `zone`, under which this was decided; NULL is not compared
    is_fallback     boolean           -- whether Postgres alone has decided it
);
COMMENT ON TYPE ledger_change IS 'One change of a batch, as apply_changes() takes it.';

\ir functions/apply_changes.sql
\ir functions/commit_changes.sql

COMMIT;
