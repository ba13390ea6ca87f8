"""Who asks for a change."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.core.actors import Actor
from dispatcher.core.idempotency import IdempotencyKey


@dataclass(frozen=True, slots=True)
class Caller:
    """The user, the request's Idempotency-Key if one was sent, and the client's address if known."""

    actor: Actor
    key: IdempotencyKey | None = None
    ip: str | None = None
