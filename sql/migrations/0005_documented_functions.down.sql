-- The functions of the commit as 0004 has them, and the comments as they were.

CREATE OR REPLACE FUNCTION apply_changes(changes ledger_change[])
RETURNS TABLE (idx integer, outcome text, stored_status smallint, stored_response text, stored_fingerprint text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    trip_ids   text[];
    driver_ids text[];
    passed     integer[];
    kept       integer[];
    has_keys   boolean;
    has_states boolean;
    has_births boolean;
    has_events boolean;
    has_nos    boolean;
    written    bigint;
BEGIN
    -- Each statement below costs as much as a change, so those with nothing to do are left out.
    SELECT array_agg(c.trip_id) FILTER (WHERE c.trip_id IS NOT NULL),
           array_agg(coalesce(c.set_driver, c.required_driver))
               FILTER (WHERE c.set_driver IS NOT NULL OR c.required_driver IS NOT NULL),
           bool_or(c.idem_key IS NOT NULL), bool_or(c.set_driver IS NOT NULL),
           bool_or(c.is_creation), bool_or(c.event IS NOT NULL), bool_or(c.declines IS NOT NULL)
      INTO trip_ids, driver_ids, has_keys, has_states, has_births, has_events, has_nos
      FROM unnest(changes) c;

    -- One order for every batch of every server: drivers, then trips, each by name.
    IF driver_ids IS NOT NULL THEN
        PERFORM 1 FROM driver_details d WHERE d.user_id = ANY (driver_ids) ORDER BY d.user_id FOR NO KEY UPDATE;
    END IF;
    IF trip_ids IS NOT NULL THEN
        PERFORM 1 FROM trip_requests t WHERE t.id = ANY (trip_ids) ORDER BY t.id FOR NO KEY UPDATE;
    END IF;

    SELECT array_agg(c.idx) INTO passed
      FROM unnest(changes) c
      LEFT JOIN trip_requests t ON t.id = c.trip_id
      LEFT JOIN driver_details d ON d.user_id = coalesce(c.set_driver, c.required_driver)
     WHERE CASE
               WHEN c.trip_id IS NULL THEN true
               WHEN c.is_creation THEN t.id IS NULL
               WHEN c.declines IS NOT NULL THEN t.current_status = ANY (c.sources)
               ELSE t.version = c.expect_version AND t.current_status = ANY (c.sources)
           END
       AND (c.required_driver IS NULL OR (
               d.is_online AND d.availability_status = 'available' AND d.zone = c.zone
               -- LIMIT keeps the planner at one index probe a change; NOT EXISTS would be hashed, and read
               -- every active trip there is.
               AND (SELECT true FROM trip_requests a
                     WHERE a.driver_id = c.required_driver
                       AND a.current_status IN ('accepted', 'arrived', 'ongoing') LIMIT 1) IS NULL))
       AND (c.set_driver IS NULL OR (
               coalesce(d.version, -1) = c.expect_driver_version
               -- Whoever goes offline, or elsewhere, takes no trip along that has not started.
               AND ((c.set_online AND c.set_zone = coalesce(d.zone, c.set_zone))
                    OR (SELECT true FROM trip_requests a
                         WHERE a.driver_id = c.set_driver
                           AND a.current_status IN ('accepted', 'arrived')
                           AND a.id IS DISTINCT FROM c.trip_id LIMIT 1) IS NULL)));

    IF has_keys THEN
        WITH inserted AS (
            INSERT INTO idempotency_keys AS k (idempotency_key, user_id, endpoint, zone, request_payload,
                request_fingerprint, response_payload, status_code, expires_at, created_at, updated_at)
            SELECT c.idem_key, c.idem_user, c.idem_endpoint, c.zone, c.request_payload,
                   c.fingerprint, c.response, c.status_code, c.expires_at, c.at, c.at
              FROM unnest(changes) c
             WHERE c.idx = ANY (passed) AND c.idem_key IS NOT NULL
             ORDER BY c.idem_user, c.idem_endpoint, c.idem_key
            ON CONFLICT (user_id, endpoint, idempotency_key) DO UPDATE
               SET zone = excluded.zone, request_payload = excluded.request_payload,
                   request_fingerprint = excluded.request_fingerprint,
                   response_payload = excluded.response_payload, status_code = excluded.status_code,
                   expires_at = excluded.expires_at, created_at = excluded.created_at,
                   updated_at = excluded.updated_at
             WHERE k.expires_at <= now()
            RETURNING k.user_id, k.endpoint, k.idempotency_key)
        SELECT array_agg(c.idx) FILTER (WHERE c.idem_key IS NULL OR i.user_id IS NOT NULL)
          INTO kept
          FROM unnest(changes) c
          LEFT JOIN inserted i
            ON i.user_id = c.idem_user AND i.endpoint = c.idem_endpoint AND i.idempotency_key = c.idem_key
         WHERE c.idx = ANY (passed);
    ELSE
        kept := passed;
    END IF;

    IF has_births THEN
        INSERT INTO trip_requests (id, zone, customer_id, vehicle_type, pickup_location, dropoff_location,
                                   created_at, updated_at)
        SELECT c.trip_id, c.zone, c.customer_id, c.vehicle_type, c.pickup, c.dropoff, c.at, c.at
          FROM unnest(changes) c
         WHERE c.is_creation AND c.idx = ANY (kept);
    END IF;

    IF has_events THEN
        UPDATE trip_requests t
           SET version = t.version + 1,
               current_status = c.to_status,
               driver_id = c.driver_id,
               updated_at = c.at,
               locked_at = CASE WHEN c.event = 'accepted' THEN c.at
                                WHEN c.event = 'released' THEN NULL ELSE t.locked_at END,
               accepted_at = CASE WHEN c.event = 'accepted' THEN c.at
                                  WHEN c.event = 'released' THEN NULL ELSE t.accepted_at END,
               arrived_at = CASE WHEN c.event = 'arrived' THEN c.at
                                 WHEN c.event = 'released' THEN NULL ELSE t.arrived_at END,
               trip_start_time = CASE WHEN c.event = 'started' THEN c.at ELSE t.trip_start_time END,
               completed_at = CASE WHEN c.event = 'completed' THEN c.at ELSE t.completed_at END,
               cancelled_at = CASE WHEN c.event = 'cancelled' THEN c.at ELSE t.cancelled_at END,
               expired_at = CASE WHEN c.event = 'expired' THEN c.at ELSE t.expired_at END,
               cancel_reason = CASE WHEN c.event = 'cancelled' THEN c.reason ELSE t.cancel_reason END
          FROM unnest(changes) c
         WHERE t.id = c.trip_id AND c.idx = ANY (kept) AND c.event IS NOT NULL AND NOT c.is_creation
           AND t.version = c.expect_version AND t.current_status = ANY (c.sources);

        INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role, payload, created_at)
        SELECT c.trip_id, coalesce(c.expect_version + 1, 0), c.event, c.actor_id, c.actor_role, c.payload, c.at
          FROM unnest(changes) c
         WHERE c.event IS NOT NULL AND c.idx = ANY (kept);
    END IF;

    IF has_states THEN
        INSERT INTO driver_details AS d (user_id, zone, availability_status, is_online, vehicle_type, version,
                                         created_at, updated_at)
        SELECT c.set_driver, c.set_zone, c.set_available, c.set_online, c.set_vehicle,
               c.expect_driver_version + 1, c.at, c.at
          FROM unnest(changes) c
         WHERE c.set_driver IS NOT NULL AND c.idx = ANY (kept)
         ORDER BY c.set_driver
        ON CONFLICT (user_id) DO UPDATE
           SET zone = excluded.zone, availability_status = excluded.availability_status,
               is_online = excluded.is_online, vehicle_type = excluded.vehicle_type,
               version = excluded.version, updated_at = excluded.updated_at
         WHERE d.version = excluded.version - 1;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written < (SELECT count(*) FROM unnest(changes) c
                       WHERE c.set_driver IS NOT NULL AND c.idx = ANY (kept)) THEN
            -- A driver nobody knew, so there was no row to lock, and another server was faster.
            RAISE unique_violation USING MESSAGE = 'a driver has become known meanwhile';
        END IF;
    END IF;

    IF has_nos THEN
        INSERT INTO trip_offers AS o (trip_id, driver_id, wave, offered_at, outcome, outcome_at)
        SELECT c.trip_id, c.declines,
               coalesce((SELECT max(p.wave) FROM trip_offers p
                          WHERE p.trip_id = c.trip_id AND p.driver_id = c.declines), 0),
               c.at, 'declined', c.at
          FROM unnest(changes) c
         WHERE c.declines IS NOT NULL AND c.idx = ANY (kept)
        ON CONFLICT (trip_id, driver_id, wave) DO UPDATE
           SET outcome = excluded.outcome, outcome_at = excluded.outcome_at;
    END IF;

    RETURN QUERY SELECT k, 'ok'::text, NULL::smallint, NULL::text, NULL::text FROM unnest(kept) k;
    IF coalesce(cardinality(kept), 0) < cardinality(changes) THEN
        RETURN QUERY
        SELECT c.idx, CASE WHEN k.id IS NULL THEN 'stale' ELSE 'replay' END,
               k.status_code, k.response_payload, k.request_fingerprint
          FROM unnest(changes) c
          LEFT JOIN idempotency_keys k
            ON k.user_id = c.idem_user AND k.endpoint = c.idem_endpoint
           AND k.idempotency_key = c.idem_key AND k.expires_at > now()
         WHERE c.idx <> ALL (coalesce(kept, '{}'));
    END IF;
END $$;

CREATE OR REPLACE FUNCTION commit_changes(changes ledger_change[])
RETURNS TABLE (idx integer, outcome text, stored_status smallint, stored_response text, stored_fingerprint text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    change ledger_change;
BEGIN
    -- All locks first, in the order of every batch: row by row, two batches could wait for each other.
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

COMMENT ON FUNCTION apply_changes(ledger_change[]) IS NULL;
COMMENT ON FUNCTION commit_changes(ledger_change[]) IS NULL;
COMMENT ON DOMAIN trip_name IS NULL;
COMMENT ON DOMAIN zone_name IS NULL;
COMMENT ON DOMAIN place IS NULL;
COMMENT ON DOMAIN trip_status IS NULL;
COMMENT ON TABLE trip_requests IS 'One row a trip: its present state. The history is in trip_events.';
COMMENT ON TABLE driver_details IS 'One row a driver. Their active trip is the one in trip_requests.';
COMMENT ON TABLE trip_events IS 'One row a version of a trip, creation included: replayed, they give its state.';
COMMENT ON TABLE idempotency_keys IS NULL;
COMMENT ON TABLE trip_offers IS 'One row an offer. Wave 0: the driver declined without having been offered the trip.';
COMMENT ON TYPE ledger_change IS NULL;
