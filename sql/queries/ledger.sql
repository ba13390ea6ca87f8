-- name: apply_changes(changes)
-- Commits a batch of changes. If a row breaks a constraint, this raises, and nothing of the batch is written.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM apply_changes(:changes::ledger_change[]);

-- name: commit_changes(changes)
-- The same, change by change: one that breaks a constraint fails alone.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM commit_changes(:changes::ledger_change[]);
