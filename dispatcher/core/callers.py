"""Who asks for a change."""

from __future__ import annotations

from typing import NamedTuple

from dispatcher.core.actors import Actor
from dispatcher.core.idempotency import IdempotencyKey


class Caller(NamedTuple):
    """The user, the request's Idempotency-Key if one was sent, and the client's address if known."""

    actor: Actor
    key: IdempotencyKey | None = None
    ip: str | None = None
