-- How many keys the apps have sent in the last hour. A sudden fall means that an app lost its keys.
SELECT endpoint, COUNT(*) FROM idempotency_keys WHERE created_at > NOW() - INTERVAL '1 hour' GROUP BY endpoint;
