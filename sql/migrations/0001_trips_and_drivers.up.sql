-- Trips, drivers and the history of trips.
-- Spatial columns are native points (x = lng, y = lat, degrees): the product needs no extension.

CREATE FUNCTION is_position(p point) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN p[0] BETWEEN -180 AND 180 AND p[1] BETWEEN -90 AND 90;
COMMENT ON FUNCTION is_position(point) IS 'Whether a point is a longitude and a latitude in degrees; NaN is not.';

-- Haversine on a sphere of the mean Earth radius (IUGG, 6,371,008.8 m): within 0.6 % of the ellipsoid.
CREATE FUNCTION distance_m(a point, b point) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN 2 * 6371008.8 * asin(least(1, sqrt(
        sin(radians(b[1] - a[1]) / 2) ^ 2
        + cos(radians(a[1])) * cos(radians(b[1])) * sin(radians(b[0] - a[0]) / 2) ^ 2)));
COMMENT ON FUNCTION distance_m(point, point) IS 'Great-circle distance of two (lng, lat) points in metres.';

-- The shapes of values are domains: a domain looks at a value when it is written, a column's CHECK at every column
-- of the row whenever any of them changes, which made an accept a third dearer.
CREATE DOMAIN trip_name AS text CHECK (VALUE ~ '^[a-z0-9-]{1,32}_[A-Za-z0-9_-]{1,64}$');
CREATE DOMAIN zone_name AS text CHECK (VALUE ~ '^[a-z0-9-]{1,32}$');
CREATE DOMAIN place AS point CHECK (is_position(VALUE));
CREATE DOMAIN trip_status AS text CHECK (VALUE IN
    ('pending', 'accepted', 'arrived', 'ongoing', 'completed', 'cancelled', 'expired'));

CREATE TABLE trip_requests (
    id               trip_name PRIMARY KEY,
    zone             zone_name NOT NULL,
    customer_id      text NOT NULL,
    driver_id        text,
    current_status   trip_status NOT NULL DEFAULT 'pending',
    version          integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    locked_at        timestamptz,
    vehicle_type     text NOT NULL DEFAULT 'car',
    pickup_location  place NOT NULL,
    dropoff_location place,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
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
COMMENT ON TABLE trip_requests IS 'One row a trip: its present state. The history is in trip_events.';
COMMENT ON COLUMN trip_requests.version IS 'Raised by one with every change; what optimistic locking compares.';
COMMENT ON COLUMN trip_requests.locked_at IS 'When the present driver got the trip; empty while nobody has it.';

CREATE INDEX trip_requests_status_driver_version ON trip_requests (current_status, driver_id, version);
-- Partial: only a pending trip is looked for by place, and an accept then leaves the tree alone.
CREATE INDEX trip_requests_pickup ON trip_requests USING gist (pickup_location)
    WHERE current_status = 'pending';
CREATE INDEX trip_requests_locked ON trip_requests (locked_at) WHERE locked_at IS NOT NULL;
-- Not partial: an index of the live trips alone would fit the question for a driver's active trip, too. Analyzed
-- in a quiet night it counts as empty, and is then read from end to end at the next rush hour.
CREATE INDEX trip_requests_customer ON trip_requests (customer_id, current_status);
-- The invariant itself: a second active trip of a driver cannot be written, whatever the code above does.
CREATE UNIQUE INDEX trip_requests_one_active_per_driver ON trip_requests (driver_id)
    WHERE current_status IN ('accepted', 'arrived', 'ongoing');

CREATE TABLE driver_details (
    user_id             text PRIMARY KEY,
    zone                zone_name NOT NULL,
    availability_status text NOT NULL DEFAULT 'unavailable'
        CHECK (availability_status IN ('available', 'unavailable')),
    is_online           boolean NOT NULL DEFAULT false,
    vehicle_type        text NOT NULL DEFAULT 'car',
    version             integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    current_location    place,
    location_updated_at timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);
COMMENT ON TABLE driver_details IS 'One row a driver. Their active trip is the one in trip_requests.';

CREATE INDEX driver_details_location ON driver_details USING gist (current_location);
CREATE INDEX driver_details_online ON driver_details (zone) WHERE is_online;

CREATE TABLE trip_events (
    trip_id    text NOT NULL,
    version    integer NOT NULL CHECK (version >= 0),
    event      text NOT NULL CHECK (event IN
        ('created', 'accepted', 'arrived', 'started', 'completed', 'released', 'cancelled', 'expired')),
    actor_id   text NOT NULL,
    actor_role text NOT NULL CHECK (actor_role IN ('driver', 'customer', 'admin', 'system')),
    payload    jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trip_id, version)
);
-- No foreign key: only apply_changes() writes here, in the transaction that holds the trip's row lock, and a
-- check a row would cost a fifth of an accept.
COMMENT ON TABLE trip_events IS 'One row a version of a trip, creation included: replayed, they give its state.';
CREATE INDEX trip_events_created ON trip_events USING brin (created_at);
