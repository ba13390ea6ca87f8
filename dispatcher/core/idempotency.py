"""Idempotency keys, and the answers that are kept for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


# Not frozen: that takes four times as long to make, and each call with a key makes one.
@dataclass(slots=True)
class IdempotencyKey:
    """One request's key in its scope, with the fingerprint of what was asked (hex SHA-256)."""

    user_id: str
    endpoint: str
    key: str
    fingerprint: str
    request_payload: bytes = field(repr=False, default=b"{}")


class KeyedAnswer(NamedTuple):
    """The answer that a change is to keep for its key, in the transaction of the change."""

    key: IdempotencyKey
    status: int
    body: str
    expires_at_ms: int

    @property
    def stored(self) -> StoredAnswer:
        """The same as it will be read."""
        return StoredAnswer(self.key.fingerprint, self.status, self.body, self.expires_at_ms)


class StoredAnswer(NamedTuple):
    """The success that is replayed for a key: its status and its body, byte for byte."""

    fingerprint: str
    status: int
    body: str
    expires_at_ms: int
