-- name: apply_changes(changes)
-- Commits a batch of changes. If a row breaks a constraint, this raises, and nothing of the batch is written.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM apply_changes(:changes::ledger_change[]);

-- name: commit_changes(changes)
-- The same, change by change: one that breaks a constraint fails alone.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM commit_changes(:changes::ledger_change[]);

-- name: locked_rows(trips, drivers)
-- Which of these trips and drivers another transaction has locked; waits for none of them.
WITH free_trips AS (SELECT id FROM trip_requests WHERE id = ANY (:trips) FOR NO KEY UPDATE SKIP LOCKED),
     free_drivers AS (SELECT user_id FROM driver_details WHERE user_id = ANY (:drivers) FOR NO KEY UPDATE SKIP LOCKED)
SELECT 'trip' AS kind, t.id AS id FROM trip_requests t
 WHERE t.id = ANY (:trips) AND t.id NOT IN (SELECT f.id FROM free_trips f)
UNION ALL
SELECT 'driver', d.user_id FROM driver_details d
 WHERE d.user_id = ANY (:drivers) AND d.user_id NOT IN (SELECT f.user_id FROM free_drivers f);

-- name: can_write()$
-- Whether this session may write: not on a standby, and not where the database was set to read-only.
SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off';

-- name: limit_lock_wait()!
-- The transaction that follows waits for no lock longer than this.
SET LOCAL lock_timeout = '500ms';

-- name: lock_written_tables()!
-- Takes, in a transaction, the locks that a commit takes on its tables.
LOCK TABLE driver_details, trip_requests, idempotency_keys, trip_events IN ROW EXCLUSIVE MODE;
