-- How many idempotency keys have expired and are still there, and since when the oldest one has.
-- A few are normal: the clean-up deletes them in chunks, some time after they have expired.
-- Worry when the oldest expired more than some minutes ago: the clean-up does not run, and the table grows.
SELECT count(*) AS expired, min(expires_at) AS oldest FROM idempotency_keys WHERE expires_at < now();
