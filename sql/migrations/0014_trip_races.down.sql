DROP TABLE trip_races;
