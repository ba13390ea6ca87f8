-- Why a round of matching asked a driver: the score and its parts, beside the offer.

ALTER TABLE trip_offers ADD COLUMN score jsonb;
COMMENT ON COLUMN trip_offers.score IS
    'Of an offer that a round of matching made: the score in seconds of way, its parts, and the next three drivers.';
