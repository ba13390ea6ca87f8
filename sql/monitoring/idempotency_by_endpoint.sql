-- How many requests of the last hour had an Idempotency-Key and were carried out, by endpoint.
-- The count follows the traffic.
-- Worry when it falls suddenly while the traffic does not: an app has stopped sending keys, and its retries are not safe.
SELECT endpoint, COUNT(*) FROM idempotency_keys WHERE created_at > NOW() - INTERVAL '1 hour' GROUP BY endpoint;
