-- Which driver was shown which trip, and what came of it.

CREATE TABLE trip_offers (
    trip_id    text NOT NULL,
    driver_id  text NOT NULL,
    wave       integer NOT NULL CHECK (wave >= 0),
    distance_m double precision CHECK (distance_m >= 0),
    offered_at timestamptz NOT NULL,
    deadline   timestamptz,
    outcome    text NOT NULL DEFAULT 'open' CHECK (outcome IN
        ('open', 'accepted', 'declined', 'expired', 'withdrawn')),
    outcome_at timestamptz,
    PRIMARY KEY (trip_id, driver_id, wave)
);
COMMENT ON TABLE trip_offers IS 'One row an offer. Wave 0: the driver declined without having been offered the trip.';
CREATE INDEX trip_offers_driver ON trip_offers (driver_id, offered_at);
CREATE INDEX trip_offers_open ON trip_offers (deadline) WHERE outcome = 'open';
