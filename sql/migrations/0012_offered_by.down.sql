-- Who made an offer by hand is forgotten.

ALTER TABLE trip_offers DROP COLUMN offered_by;
