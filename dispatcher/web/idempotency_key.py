"""The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header) and its fingerprint."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any, Final

import orjson
from multidict import CIMultiDictProxy, istr

from dispatcher.core.actors import Actor
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey

IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")

_MAX_LENGTH: Final = 255
# RFC 8941, 3.3.3: printable ASCII, with backslash and quote escaped by a backslash.
_QUOTED: Final = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED: Final = re.compile(r'\\(["\\])')


def read_key(
    headers: CIMultiDictProxy[str], actor: Actor, route: str, data: Any, *, required: bool
) -> IdempotencyKey | None:
    """The request's key, with the fingerprint of `data`, the body, which was checked.

    Raises Refusal invalid_, duplicate_ or missing_idempotency_key.
    """
    values = headers.getall(IDEMPOTENCY_KEY, ())
    if len(values) > 1:
        raise Refusal("duplicate_idempotency_key")
    return key_of(values[0] if values else None, actor, route, data, required=required)


def key_of(
    text: object, actor: Actor, route: str, data: Any, *, required: bool
) -> IdempotencyKey | None:
    """The same, from the header's text, or from the field of a frame."""
    if text is None:
        if required:
            raise Refusal("missing_idempotency_key")
        return None
    key = unquote(text) if isinstance(text, str) else None
    if key is None:
        raise Refusal("invalid_idempotency_key")
    payload = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    digest = _route_digest(route).copy()
    digest.update(payload)
    return IdempotencyKey(actor.user_id, route, key, digest.hexdigest(), payload)


@lru_cache(maxsize=64)
def _route_digest(route: str) -> hashlib._Hash:
    """The digest that all fingerprints of a route begin with."""
    return hashlib.sha256(f"POST {route}\n".encode())


def unquote(text: str) -> str | None:
    """The key that a header's text means; None where it is malformed."""
    if text.startswith('"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            return None
        text = _ESCAPED.sub(r"\1", match[1])
    # In ASCII, printable is 0x20 to 0x7e.
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= _MAX_LENGTH else None
