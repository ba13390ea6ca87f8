-- name: apply_changes(changes)
-- A batch of changes: those whose guards hold. All of it fails where a row breaks a constraint.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM apply_changes(:changes::ledger_change[]);

-- name: commit_changes(changes)
-- The same, each row for itself: a row that breaks a constraint fails alone.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM commit_changes(:changes::ledger_change[]);
