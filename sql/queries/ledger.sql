-- name: commit_changes(changes)
-- A batch of changes, each whole or not at all.
SELECT idx, outcome, stored_status, stored_response, stored_fingerprint
  FROM commit_changes(:changes::ledger_change[]);
