-- Which operator made an offer by hand.

ALTER TABLE trip_offers ADD COLUMN offered_by text;
COMMENT ON COLUMN trip_offers.offered_by IS
    'Of an offer that an operator made by hand: the operator. NULL: a wave made it.';
