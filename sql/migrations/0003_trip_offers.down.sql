DROP TABLE trip_offers;
