-- How far back a load looks after a long time without Redis is forgotten.

ALTER TABLE zone_authorities DROP COLUMN alone_since;
