-- The answers that are replayed. A row is written with its effect, in one transaction.

CREATE TABLE idempotency_keys (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key     text NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    user_id             text NOT NULL,
    endpoint            text NOT NULL,
    zone                text NOT NULL,
    request_payload     jsonb NOT NULL,
    request_fingerprint text NOT NULL CHECK (length(request_fingerprint) = 64
        AND translate(request_fingerprint, '0123456789abcdef', '') = ''),
    response_payload    text NOT NULL,
    status_code         smallint NOT NULL CHECK (status_code BETWEEN 200 AND 299),
    expires_at          timestamptz NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, endpoint, idempotency_key)
);
COMMENT ON COLUMN idempotency_keys.response_payload IS 'The answer''s body as it was sent; replayed byte for byte, so text and not jsonb.';
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
