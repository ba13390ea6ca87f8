-- name: get_answer(user_id, endpoint, key)^
-- The stored answer of a key that has not expired.
SELECT request_fingerprint, status_code, response_payload, expires_at FROM idempotency_keys
 WHERE user_id = :user_id AND endpoint = :endpoint AND idempotency_key = :key AND expires_at > now();

-- name: live_answers_of_zone(zone, max_rows)
-- The answers of a zone that have not expired, the newest first: Redis is filled again from these.
SELECT user_id, endpoint, idempotency_key, request_fingerprint, status_code, response_payload,
       expires_at
  FROM idempotency_keys
 WHERE zone = :zone AND expires_at > now()
 ORDER BY expires_at DESC LIMIT :max_rows;

-- name: answers_of_zone_after(zone, answer_id, since, max_rows)
-- Those of them that came after an id, or since then.
SELECT user_id, endpoint, idempotency_key, request_fingerprint, status_code, response_payload,
       expires_at
  FROM idempotency_keys
 WHERE (id > :answer_id OR created_at >= :since) AND zone = :zone AND expires_at > now()
 ORDER BY expires_at DESC LIMIT :max_rows;

-- name: last_answer()$
-- The highest id of an answer.
SELECT coalesce(max(id), 0) FROM idempotency_keys;

-- name: answer_ids_of_zone(zone, before, page_size)
-- A page, the newest first, of a zone's answers that live for another minute.
SELECT id FROM idempotency_keys
 WHERE id < :before AND zone = :zone AND expires_at > now() + interval '1 minute'
 ORDER BY id DESC LIMIT :page_size;

-- name: answers_by_id(ids)
-- Several stored answers with their keys.
SELECT id, user_id, endpoint, idempotency_key, request_fingerprint, status_code, response_payload, expires_at
  FROM idempotency_keys
 WHERE id = ANY (:ids::bigint[]);

-- name: delete_expired(batch_size)!
-- Deletes a chunk of the expired answers, and skips rows that another server's clean-up is deleting.
DELETE FROM idempotency_keys
 WHERE id IN (SELECT id FROM idempotency_keys WHERE expires_at <= now()
               ORDER BY expires_at LIMIT :batch_size FOR UPDATE SKIP LOCKED);
