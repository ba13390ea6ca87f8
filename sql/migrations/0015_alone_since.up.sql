-- Since when Redis may lack what Postgres has decided alone: a load tells its events from then on.

ALTER TABLE zone_authorities ADD COLUMN alone_since timestamptz;
COMMENT ON COLUMN zone_authorities.alone_since IS
    'Since when Postgres has decided alone what Redis has not been loaded with. NULL: Redis has been loaded since.';
