-- commit_changes(ledger_change[]): commits a batch change by change, so that one that breaks a constraint fails alone.
--
-- A server calls this for a batch that apply_changes() has refused as a whole. It does not start here, because the
-- subtransaction around each change costs as much as six changes.
--
-- Answers as apply_changes() does, and in addition 'error SQLSTATE message' for a change that breaks a constraint.
-- A broken unique constraint is 'stale': another transaction, or an earlier change of the batch, was faster.
-- Deadlocks, serialization failures and timeouts are raised: they are the batch's, and the caller decides about it.
CREATE OR REPLACE FUNCTION commit_changes(changes ledger_change[])
RETURNS TABLE (idx integer, outcome text, stored_status smallint, stored_response text, stored_fingerprint text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    change ledger_change;
BEGIN
    -- All locks first, in the order in which every batch takes them. Two batches that locked change by change could
    -- wait for each other.
    PERFORM 1 FROM driver_details d
      WHERE d.user_id = ANY (ARRAY(SELECT coalesce(c.set_driver, c.required_driver) FROM unnest(changes) c))
      ORDER BY d.user_id FOR NO KEY UPDATE;
    PERFORM 1 FROM trip_requests t WHERE t.id = ANY (ARRAY(SELECT c.trip_id FROM unnest(changes) c))
      ORDER BY t.id FOR NO KEY UPDATE;
    FOREACH change IN ARRAY changes LOOP
        BEGIN
            RETURN QUERY SELECT * FROM apply_changes(ARRAY[change]);
        EXCEPTION
            WHEN deadlock_detected OR serialization_failure OR query_canceled OR lock_not_available THEN RAISE;
            WHEN unique_violation THEN
                RETURN QUERY SELECT change.idx, 'stale'::text, NULL::smallint, NULL::text, NULL::text;
            WHEN OTHERS THEN
                RETURN QUERY SELECT change.idx, 'error ' || SQLSTATE || ' ' || SQLERRM,
                                    NULL::smallint, NULL::text, NULL::text;
        END;
    END LOOP;
END $$;
COMMENT ON FUNCTION commit_changes(ledger_change[]) IS
    'Commits a batch change by change, so that one that breaks a constraint fails alone.';
