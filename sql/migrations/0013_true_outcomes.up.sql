-- A decline changes no offer that has ended, and outcomes from before their offer are put right.

-- They were those of earlier offers of the trip to the same driver. An offer without an outcome is closed by what the
-- trip's history says (close_overdue_offers in sql/queries/offers.sql).
UPDATE trip_offers SET outcome = 'open', outcome_at = NULL
 WHERE outcome_at < offered_at AND deadline IS NOT NULL;

-- apply_changes(ledger_change[]): commits a batch of changes, each as a whole or not at all.
--
-- Answers one row per change:
--   'ok'      the change is written: the trip, its event, the driver's state, the declined offer, the stored answer;
--   'replay'  its idempotency key was used before: nothing is written, and the stored answer comes with the row;
--   'fenced'  who decides about its zone has changed since it was decided: nothing is written;
--   'stale'   a guard did not hold (the version, the state, the driver): nothing is written.
-- Raises where a row breaks a constraint. Nothing of the batch is written then; see commit_changes().
--
-- The steps: lock the drivers and trips of the batch, check the guards of each change against the locked rows, take
-- the idempotency keys, write. Each statement of a function sees what other transactions committed while an earlier
-- statement waited for their locks. One statement with CTEs would still look at its old snapshot; hence PL/pgSQL.
--
-- The CASEs below state the transition table of dispatcher/core/transitions.py. tests/ledger/test_transitions.py
-- holds the two together.
--
-- This runs once per batch of every server, so its plans are tuned: a change of a join or of a guard needs a
-- measurement with full tables. The text is installed by a migration, so a change of it needs a new migration.
CREATE OR REPLACE FUNCTION apply_changes(changes ledger_change[])
RETURNS TABLE (idx integer, outcome text, stored_status smallint, stored_response text, stored_fingerprint text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    trip_ids          text[];
    driver_ids        text[];
    permitted         integer[];  -- the changes whose guards hold, by idx
    applied           integer[];  -- of these, the ones whose idempotency key is new or who have none
    has_keys          boolean;
    has_driver_states boolean;
    has_creations     boolean;
    has_events        boolean;
    has_declines      boolean;
    fallback_zones    text[];     -- of the changes that were decided without Redis
    drivers_written   bigint;
BEGIN
    -- What is in the batch. A statement costs as much as a change, so those with nothing to do are left out below.
    SELECT array_agg(change.trip_id) FILTER (WHERE change.trip_id IS NOT NULL),
           array_agg(coalesce(change.set_driver, change.required_driver))
               FILTER (WHERE change.set_driver IS NOT NULL OR change.required_driver IS NOT NULL),
           bool_or(change.idem_key IS NOT NULL), bool_or(change.set_driver IS NOT NULL),
           bool_or(change.is_creation), bool_or(change.event IS NOT NULL), bool_or(change.declines IS NOT NULL),
           array_agg(change.zone) FILTER (WHERE change.is_fallback)
      INTO trip_ids, driver_ids, has_keys, has_driver_states, has_creations, has_events, has_declines, fallback_zones
      FROM unnest(changes) change;

    -- Every batch of every server locks in the same order, so no two of them wait for each other: drivers first,
    -- then trips, both by id.
    IF driver_ids IS NOT NULL THEN
        PERFORM 1 FROM driver_details d WHERE d.user_id = ANY (driver_ids) ORDER BY d.user_id FOR NO KEY UPDATE;
    END IF;
    IF trip_ids IS NOT NULL THEN
        PERFORM 1 FROM trip_requests t WHERE t.id = ANY (trip_ids) ORDER BY t.id FOR NO KEY UPDATE;
    END IF;

    -- Before Redis decides about a zone again, the last change that was decided without it is committed: whoever gives
    -- the zone back to Redis waits for this lock. The other way needs none, since the locks above order all changes.
    IF fallback_zones IS NOT NULL THEN
        PERFORM 1 FROM zone_authorities a
          WHERE a.zone = ANY (fallback_zones) AND a.engine = 'postgres' ORDER BY a.zone FOR SHARE;
    END IF;

    -- The guards.
    SELECT array_agg(change.idx) INTO permitted
      FROM unnest(changes) change
      LEFT JOIN trip_requests t ON t.id = change.trip_id
      LEFT JOIN driver_details d ON d.user_id = coalesce(change.set_driver, change.required_driver)
      LEFT JOIN zone_authorities a ON a.zone = change.zone
     WHERE (a.fence = change.fence) IS NOT FALSE
       AND CASE
               WHEN change.trip_id IS NULL THEN true
               WHEN change.is_creation THEN t.id IS NULL
               WHEN change.declines IS NOT NULL THEN t.current_status = ANY (change.sources)
               ELSE t.version = change.expect_version AND t.current_status = ANY (change.sources)
                   -- Only who has a trip gives it back.
                   AND (change.event <> 'released' OR t.driver_id = coalesce(change.set_driver, change.actor_id))
           END
       AND (change.required_driver IS NULL OR (
               d.is_online AND d.availability_status = 'available' AND d.zone = change.zone
               -- With LIMIT the planner makes one index probe per change. It would turn NOT EXISTS into a hash
               -- join, which reads every active trip there is.
               AND (SELECT true FROM trip_requests active
                     WHERE active.driver_id = change.required_driver
                       AND active.current_status IN ('accepted', 'arrived', 'ongoing') LIMIT 1) IS NULL))
       AND (change.set_driver IS NULL OR (
               coalesce(d.version, -1) = change.expect_driver_version
               -- Whoever remembers a former zone would set the driver's state where they work no more.
               AND coalesce(d.zone, change.zone) = change.zone
               -- A driver who goes offline or to another zone may not hold a trip that has not started, other than
               -- the one that this very change releases.
               AND ((change.set_online AND change.set_zone = coalesce(d.zone, change.set_zone))
                    OR (SELECT true FROM trip_requests active
                         WHERE active.driver_id = change.set_driver
                           AND active.current_status IN ('accepted', 'arrived')
                           AND active.id IS DISTINCT FROM change.trip_id LIMIT 1) IS NULL)));

    -- The idempotency keys. Whoever inserts the row has the key; an expired row counts as none.
    IF has_keys THEN
        WITH inserted AS (
            INSERT INTO idempotency_keys AS k (idempotency_key, user_id, endpoint, zone, request_payload,
                request_fingerprint, response_payload, status_code, expires_at, created_at, updated_at)
            SELECT change.idem_key, change.idem_user, change.idem_endpoint,
                   -- Where a retry asks: a driver who has changed zone asks the new one.
                   coalesce(change.set_zone, change.zone), change.request_payload,
                   change.fingerprint, change.response, change.status_code, change.expires_at, change.at, change.at
              FROM unnest(changes) change
             WHERE change.idx = ANY (permitted) AND change.idem_key IS NOT NULL
             ORDER BY change.idem_user, change.idem_endpoint, change.idem_key
            ON CONFLICT (user_id, endpoint, idempotency_key) DO UPDATE
               SET zone = excluded.zone, request_payload = excluded.request_payload,
                   request_fingerprint = excluded.request_fingerprint,
                   response_payload = excluded.response_payload, status_code = excluded.status_code,
                   expires_at = excluded.expires_at, created_at = excluded.created_at,
                   updated_at = excluded.updated_at
             WHERE k.expires_at <= now()
            RETURNING k.user_id, k.endpoint, k.idempotency_key)
        SELECT array_agg(change.idx) FILTER (WHERE change.idem_key IS NULL OR inserted.user_id IS NOT NULL)
          INTO applied
          FROM unnest(changes) change
          LEFT JOIN inserted
            ON inserted.user_id = change.idem_user AND inserted.endpoint = change.idem_endpoint
           AND inserted.idempotency_key = change.idem_key
         WHERE change.idx = ANY (permitted);
    ELSE
        applied := permitted;
    END IF;

    -- The writes.
    IF has_creations THEN
        INSERT INTO trip_requests (id, zone, customer_id, vehicle_type, pickup_location, dropoff_location,
                                   created_at, updated_at)
        SELECT change.trip_id, change.zone, change.customer_id, change.vehicle_type, change.pickup, change.dropoff,
               change.at, change.at
          FROM unnest(changes) change
         WHERE change.is_creation AND change.idx = ANY (applied);
    END IF;

    IF has_events THEN
        UPDATE trip_requests t
           SET version = t.version + 1,
               current_status = change.to_status,
               driver_id = change.driver_id,
               updated_at = change.at,
               locked_at = CASE WHEN change.event = 'accepted' THEN change.at
                                WHEN change.event = 'released' THEN NULL ELSE t.locked_at END,
               accepted_at = CASE WHEN change.event = 'accepted' THEN change.at
                                  WHEN change.event = 'released' THEN NULL ELSE t.accepted_at END,
               arrived_at = CASE WHEN change.event = 'arrived' THEN change.at
                                 WHEN change.event = 'released' THEN NULL ELSE t.arrived_at END,
               trip_start_time = CASE WHEN change.event = 'started' THEN change.at ELSE t.trip_start_time END,
               completed_at = CASE WHEN change.event = 'completed' THEN change.at ELSE t.completed_at END,
               cancelled_at = CASE WHEN change.event = 'cancelled' THEN change.at ELSE t.cancelled_at END,
               expired_at = CASE WHEN change.event = 'expired' THEN change.at ELSE t.expired_at END,
               cancel_reason = CASE WHEN change.event = 'cancelled' THEN change.reason ELSE t.cancel_reason END
          FROM unnest(changes) change
         WHERE t.id = change.trip_id AND change.idx = ANY (applied)
           AND change.event IS NOT NULL AND NOT change.is_creation
           AND t.version = change.expect_version AND t.current_status = ANY (change.sources);

        -- A trip that is two times in a batch is written once: the second event has the same version, breaks the
        -- primary key and takes the batch to commit_changes().
        INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role, payload, created_at)
        SELECT change.trip_id, coalesce(change.expect_version + 1, 0), change.event, change.actor_id,
               change.actor_role, change.payload, change.at
          FROM unnest(changes) change
         WHERE change.event IS NOT NULL AND change.idx = ANY (applied);
    END IF;

    IF has_driver_states THEN
        INSERT INTO driver_details AS d (user_id, zone, availability_status, is_online, vehicle_type, version,
                                         created_at, updated_at)
        SELECT change.set_driver, change.set_zone, change.set_available, change.set_online, change.set_vehicle,
               change.expect_driver_version + 1, change.at, change.at
          FROM unnest(changes) change
         WHERE change.set_driver IS NOT NULL AND change.idx = ANY (applied)
         ORDER BY change.set_driver
        ON CONFLICT (user_id) DO UPDATE
           SET zone = excluded.zone, availability_status = excluded.availability_status,
               is_online = excluded.is_online, vehicle_type = excluded.vehicle_type,
               version = excluded.version, updated_at = excluded.updated_at
         WHERE d.version = excluded.version - 1;
        GET DIAGNOSTICS drivers_written = ROW_COUNT;
        IF drivers_written < (SELECT count(*) FROM unnest(changes) change
                               WHERE change.set_driver IS NOT NULL AND change.idx = ANY (applied)) THEN
            -- A new driver has no row to lock, so the guards could not see that another server was faster.
            RAISE unique_violation USING MESSAGE = 'a driver has become known meanwhile';
        END IF;
    END IF;

    IF has_declines THEN
        INSERT INTO trip_offers AS o (trip_id, driver_id, wave, offered_at, outcome, outcome_at)
        -- An offer that has ended keeps its outcome: the one that is declined may not be saved yet. Wave 0 stands for it.
        SELECT change.trip_id, change.declines,
               coalesce((SELECT CASE WHEN previous.outcome = 'declined'
                                       OR previous.outcome = 'open' AND (previous.deadline > change.at) IS NOT FALSE
                                     THEN previous.wave END
                           FROM trip_offers previous
                          WHERE previous.trip_id = change.trip_id AND previous.driver_id = change.declines
                          ORDER BY previous.wave DESC LIMIT 1), 0),
               change.at, 'declined', change.at
          FROM unnest(changes) change
         WHERE change.declines IS NOT NULL AND change.idx = ANY (applied)
        ON CONFLICT (trip_id, driver_id, wave) DO UPDATE
           SET outcome = excluded.outcome, outcome_at = greatest(excluded.outcome_at, o.offered_at)
         WHERE o.outcome = 'open';
    END IF;

    -- The answers. A change that was not applied is a replay if its key has an answer, whatever its guards said.
    RETURN QUERY SELECT applied_idx, 'ok'::text, NULL::smallint, NULL::text, NULL::text
                   FROM unnest(applied) applied_idx;
    IF coalesce(cardinality(applied), 0) < cardinality(changes) THEN
        RETURN QUERY
        SELECT change.idx,
               CASE WHEN k.id IS NOT NULL THEN 'replay' WHEN a.fence <> change.fence THEN 'fenced' ELSE 'stale' END,
               k.status_code, k.response_payload, k.request_fingerprint
          FROM unnest(changes) change
          LEFT JOIN zone_authorities a ON a.zone = change.zone
          LEFT JOIN idempotency_keys k
            ON k.user_id = change.idem_user AND k.endpoint = change.idem_endpoint
           AND k.idempotency_key = change.idem_key AND k.expires_at > now()
         WHERE change.idx <> ALL (coalesce(applied, '{}'));
    END IF;
END $$;
COMMENT ON FUNCTION apply_changes(ledger_change[]) IS
    'Commits a batch of changes, each whole or not at all; raises, with nothing written, where a row breaks a constraint.';
