-- The old way's own simple schema and its statements, as `lock.py` uses them.

-- name: schema
CREATE TABLE trips (
  id text PRIMARY KEY,
  customer_id text NOT NULL,
  driver_id text,
  status text NOT NULL DEFAULT 'pending',
  version integer NOT NULL DEFAULT 0,
  vehicle_type text NOT NULL,
  pickup point NOT NULL,
  dropoff point,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  accepted_at timestamptz
);
CREATE INDEX trips_status ON trips (status, driver_id);
CREATE TABLE drivers (
  id text PRIMARY KEY,
  is_online boolean NOT NULL,
  availability_status text NOT NULL,
  trip_id text,
  updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  trip_id text NOT NULL,
  version integer NOT NULL,
  event text NOT NULL,
  actor_id text NOT NULL,
  payload jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE answers (
  user_id text NOT NULL,
  idempotency_key text NOT NULL,
  fingerprint bytea NOT NULL,
  status integer NOT NULL,
  answer bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, idempotency_key)
);

-- name: find_answer
SELECT fingerprint, status, answer FROM answers WHERE user_id = $1 AND idempotency_key = $2;

-- name: lock_trip
SELECT id, customer_id, driver_id, status, version, vehicle_type, pickup, dropoff, created_at
FROM trips WHERE id = $1 FOR UPDATE;

-- name: lock_driver
SELECT is_online, availability_status, trip_id FROM drivers WHERE id = $1 FOR UPDATE;

-- name: assign_trip
UPDATE trips
SET status = 'accepted', driver_id = $2, version = version + 1, accepted_at = now(), updated_at = now()
WHERE id = $1 RETURNING version, accepted_at, updated_at;

-- name: assign_driver
UPDATE drivers SET trip_id = $2, updated_at = now() WHERE id = $1;

-- name: add_event
INSERT INTO events (trip_id, version, event, actor_id, payload) VALUES ($1, $2, 'accepted', $3, $4);

-- name: keep_answer
INSERT INTO answers (user_id, idempotency_key, fingerprint, status, answer)
VALUES ($1, $2, $3, $4, $5);
