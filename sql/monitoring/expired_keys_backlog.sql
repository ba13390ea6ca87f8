-- Expired keys that are still there. More than some minutes' worth: the clean-up does not run.
SELECT count(*) AS expired, min(expires_at) AS oldest FROM idempotency_keys WHERE expires_at < now();
