-- Who raced for a trip and lost.

CREATE TABLE trip_races (
    trip_id   text NOT NULL,
    version   integer NOT NULL,                              -- of the accept that won
    driver_id text NOT NULL,                                 -- who lost
    tried_at  timestamptz NOT NULL,
    PRIMARY KEY (trip_id, version, driver_id)
);
COMMENT ON TABLE trip_races IS
    'Drivers who came too late to accept a trip: the first hundred of each accept, as far as no server died with them.';
