"""What a commit is given, and what it says of each change."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

from dispatcher.core.idempotency import KeyedAnswer, StoredAnswer
from dispatcher.core.times import moment

#: From where Postgres counts: 2000-01-01, in ms since the epoch.
_POSTGRES_EPOCH_MS: Final = 946_684_800_000
_POSTGRES_EPOCH: Final = moment(_POSTGRES_EPOCH_MS)


class Change(NamedTuple):
    """One change, as the composite type `ledger_change` of the schema (its comments hold here)."""

    trip_id: str | None = None
    is_creation: bool = False
    expect_version: int | None = None
    sources: tuple[str, ...] | None = None
    to_status: str | None = None
    driver_id: str | None = None
    required_driver: str | None = None
    zone: str | None = None
    customer_id: str | None = None
    vehicle_type: str | None = None
    pickup: tuple[float, float] | None = None
    dropoff: tuple[float, float] | None = None
    reason: str | None = None
    event: str | None = None
    actor_id: str | None = None
    actor_role: str | None = None
    payload: str | None = None
    at_ms: int = 0
    set_driver: str | None = None
    set_zone: str | None = None
    set_online: bool | None = None
    set_available: str | None = None
    set_vehicle: str | None = None
    expect_driver_version: int | None = None
    declines: str | None = None
    fence: int | None = None
    is_fallback: bool = False

    @property
    def version(self) -> int:
        """The trip's version once this is committed."""
        return 0 if self.expect_version is None else self.expect_version + 1

    def decided_under(self, fence: int, *, is_fallback: bool) -> Change:
        """The change under the fence by which it was decided; costs a third of `_replace`."""
        return Change._make((*self[:-2], fence, is_fallback))


class OutcomeCode(StrEnum):
    """What became of a change."""

    OK = "ok"
    STALE = "stale"  # a guard did not hold: Postgres knows better
    REPLAY = "replay"  # the key has an answer already
    FENCED = "fenced"  # who decides about the zone has changed meanwhile


class Outcome(NamedTuple):
    """What became of a change, with the stored answer where it is a replay."""

    code: OutcomeCode
    stored: StoredAnswer | None = None


async def take_changes(connection: Any) -> None:
    """Makes a connection take what `to_composite` gives: times in ms since the epoch.

    asyncpg's own way, by way of datetimes, takes as long as all else of a change. Times that are read
    are datetimes, as on any other connection.
    """
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda at_ms: ((at_ms - _POSTGRES_EPOCH_MS) * 1000,),
        decoder=lambda read: _POSTGRES_EPOCH + timedelta(microseconds=read[0]),
    )


def to_composite(index: int, change: Change, answer: KeyedAnswer | None) -> tuple[Any, ...]:
    """The change as a connection encodes it that takes changes: the composite's attributes in order.

    `index` is its place in the batch, from 0.
    """
    head = (index, *change[:25])
    tail = change[25:]
    if answer is None:
        return (*head, None, None, None, None, None, None, None, None, *tail)
    key = answer.key
    return (
        *head,
        key.user_id,
        key.endpoint,
        key.key,
        key.request_payload.decode(),
        key.fingerprint,
        answer.body,
        answer.status,
        answer.expires_at_ms,
        *tail,
    )
