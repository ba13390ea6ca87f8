-- Offers are made without a score again.

ALTER TABLE trip_offers DROP COLUMN score;
