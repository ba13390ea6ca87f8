DROP FUNCTION commit_changes(ledger_change[]);
DROP FUNCTION apply_changes(ledger_change[]);
DROP TYPE ledger_change;
