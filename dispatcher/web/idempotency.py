"""The Idempotency-Key header (IETF httpapi draft): quoted or bare, checked, with a fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from dispatcher.core.errors import Refusal
from dispatcher.core.model import Actor, IdempotencyKey

#: RFC 8941, 3.3.3: a quoted string with escapes of quote and backslash alone.
_QUOTED: Final = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE: Final = re.compile(r"[\x20-\x7e]{1,255}")
_LONGEST: Final = 255


def read_key(values: Sequence[str], *, required: bool) -> str | None:
    """The key that was sent. Raises Refusal where it is malformed, doubled, or missing."""
    if not values:
        if required:
            raise Refusal("missing_idempotency_key")
        return None
    if len(values) > 1:
        raise Refusal("duplicate_idempotency_key")
    return check_key(values[0])


def check_key(value: str) -> str:
    """A key without its quotes. Raises Refusal invalid_idempotency_key."""
    if value.startswith('"'):
        match = _QUOTED.fullmatch(value)
        value = re.sub(r"\\(.)", r"\1", match[1]) if match else ""
    if len(value) > _LONGEST or not _BARE.fullmatch(value):
        raise Refusal("invalid_idempotency_key")
    return value


def scope_key(
    actor: Actor, endpoint: str, key: str | None, document: dict[str, Any]
) -> IdempotencyKey | None:
    """The key in its scope: user and endpoint, with what was asked (method, route, canonical JSON)."""
    if key is None:
        return None
    payload = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    if b"\\u0000" in payload:
        # Postgres keeps the request as jsonb, which has no such character.
        raise Refusal("invalid_body", "Text may not hold the character U+0000.")
    digest = hashlib.sha256(b"POST " + endpoint.encode() + b"\n" + payload).hexdigest()
    return IdempotencyKey(actor.user_id, endpoint, key, digest, payload)
