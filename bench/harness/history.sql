-- Months of operation: completed trips, each with its five events; every tenth with its keys of the
-- last day. `:amount` is replaced by the number of trips.
INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, version, locked_at, vehicle_type,
    pickup_location, dropoff_location, created_at, updated_at, accepted_at, arrived_at, trip_start_time, completed_at)
SELECT 'default_h-' || n, 'default', 'hc-' || n % 100000, 'hd-' || n % 5000, 'completed', 4, t + interval '1 minute',
    'car', point(-74.2 + random() * 0.5, 40.5 + random() * 0.4), point(-74.2 + random() * 0.5, 40.5 + random() * 0.4),
    t, t + interval '20 minutes', t + interval '1 minute', t + interval '5 minutes', t + interval '6 minutes',
    t + interval '20 minutes'
FROM generate_series(1, :amount) n, LATERAL (SELECT now() - interval '90 days' * random() - interval '2 days' AS t) at;

INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role, created_at)
SELECT 'default_h-' || n, step.version, step.event, 'hd-' || n % 5000, 'driver', now() - interval '2 days'
FROM generate_series(1, :amount) n, LATERAL (VALUES (0, 'created'), (1, 'accepted'), (2, 'arrived'),
    (3, 'started'), (4, 'completed')) AS step (version, event);

INSERT INTO idempotency_keys (idempotency_key, user_id, endpoint, zone, request_payload, request_fingerprint,
    response_payload, status_code, expires_at)
SELECT 'hk-' || n, 'hd-' || n % 5000, '/api/driver/ride/trip-action', 'default', '{}',
    repeat('0', 64), repeat('x', 600), 200, now() + interval '20 hours'
FROM generate_series(1, :amount / 10) n;

ANALYZE
