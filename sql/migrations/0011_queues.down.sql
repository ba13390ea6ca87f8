-- Places in queues are known to Redis alone again.

ALTER TABLE driver_details DROP COLUMN queue, DROP COLUMN queued_at;
