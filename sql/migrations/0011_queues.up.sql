-- Where a driver waits in a queue, and since when: an emptied Redis gives nobody's place away.

ALTER TABLE driver_details ADD COLUMN queue zone_name, ADD COLUMN queued_at timestamptz;
COMMENT ON COLUMN driver_details.queue IS 'The queue of the zone in which the driver waits, as Redis last told; empty for none.';
COMMENT ON COLUMN driver_details.queued_at IS 'When the driver arrived in the queue; without one, when they left the last one.';
