"""Claims: who may go on to commit a change, and what everyone else is told.

One method a script, of the same name: it builds keys and arguments, runs the script, and decodes
strictly what it says (claim_results).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, TypeVar

import structlog

from dispatcher.core.actors import Actor
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limits
from dispatcher.core.trips import Status
from dispatcher.live.claim_results import (
    AcceptClaimed,
    AvailabilityClaimed,
    CreationClaimed,
    DeclineClaimed,
    NotClaimed,
    TransitionClaimed,
    accept_claimed,
    availability_claimed,
    decline_claimed,
    decode_claim,
    transition_claimed,
)
from dispatcher.live.keys import Keys
from dispatcher.live.limits import limit_keys_and_rates
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.redis_errors import UNREADABLE

log = structlog.get_logger("dispatcher.claims")

#: A sweeper that dies leaves its entries to another one after this long.
_SWEEP_AGAIN_MS: Final = 10_000
#: Stands in entries and keys for what an attempt does not have.
NOBODY: Final = "-"
_ClaimedT = TypeVar("_ClaimedT")


class Resolved(StrEnum):
    """What is known already when a claim is asked for again: Postgres was asked for the key, the trip,
    the driver, or what became of the change that is waited for; the limits have counted this request."""

    KEY = "key"
    TRIP = "trip"
    DRIVER = "driver"
    CHANGE = "change"
    LIMITS = "limits"


#: How tokens end of attempts that are no accepts: who accepts a trip that such an attempt changes has
#: not lost it to another driver, and waits for what becomes of it.
WAITED_FOR: Final = "w"


class Attempt(NamedTuple):
    """One try of one request to change something: what its claim needs and its settle lets go of."""

    token: str
    trip_id: str
    driver_id: str
    lease_ms: int
    key: IdempotencyKey | None
    key_ttl_ms: int
    limits: Limits = ()
    resolved: frozenset[Resolved] = frozenset()

    def resolve(self, what: Resolved) -> Attempt:
        """The same attempt, knowing more."""
        return self._replace(resolved=self.resolved | {what})

    @property
    def entry(self) -> str:
        """The member of the zone's `claims`: enough for a sweeper to look at the right rows."""
        return f"{self.token} {self.trip_id or NOBODY} {self.driver_id or NOBODY}"

    def record_key(self, keys: Keys) -> str:
        """The key of the idempotency record; where none was sent, a key of the right slot."""
        if self.key is None:
            return keys.epoch
        return keys.idem(self.key.user_id, self.key.endpoint, self.key.key)


class OverdueClaim(NamedTuple):
    """An attempt that nobody settled or released."""

    entry: str
    token: str
    trip_id: str | None
    driver_id: str | None

    @classmethod
    def decode(cls, entry: str) -> OverdueClaim:
        """The attempt that a member of the zone's `claims` stands for."""
        token, trip_id, driver_id = entry.split(" ")
        return cls(
            entry,
            token,
            None if trip_id == NOBODY else trip_id,
            None if driver_id == NOBODY else driver_id,
        )


class ClaimScripts:
    """The claims, and what ends one without a settle. All raise StoreUnavailable.

    A claim hands its caller the one coroutine that runs the script: each more would be woken with it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def claim_accept(
        self, keys: Keys, attempt: Attempt, *, version: int | None, policy: Literal["open", "offered"]
    ) -> Coroutine[Any, Any, AcceptClaimed | NotClaimed]:
        """Claims trip and driver for an accept."""
        trip_id, driver_id = attempt.trip_id, attempt.driver_id
        names = (
            keys.trip(trip_id), keys.driver(driver_id), keys.trip_claim(trip_id),
            keys.driver_claim(driver_id), keys.offers(trip_id),
        )  # fmt: skip
        args = ("" if version is None else version, driver_id, policy)
        return self._claim("claim_accept", keys, attempt, names, args, accept_claimed)

    def claim_transition(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        version: int | None,
        actor: Actor,
        sources: Iterable[Status],
    ) -> Coroutine[Any, Any, TransitionClaimed | NotClaimed]:
        """Claims a trip that exists and is in one of the states `sources`."""
        trip_id = attempt.trip_id
        names = (keys.trip(trip_id), keys.trip_claim(trip_id), keys.offers(trip_id))
        args = (
            "" if version is None else version, actor.role, actor.user_id, f",{','.join(sources)},",
        )  # fmt: skip
        return self._claim("claim_transition", keys, attempt, names, args, transition_claimed)

    def claim_creation(
        self, keys: Keys, attempt: Attempt
    ) -> Coroutine[Any, Any, CreationClaimed | NotClaimed]:
        """Claims a trip's id."""
        names = (keys.trip(attempt.trip_id), keys.trip_claim(attempt.trip_id))
        return self._claim("claim_creation", keys, attempt, names, (), CreationClaimed)

    def claim_availability(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        goes_offline: bool,
        changes_zone: bool,
        vehicle_type: str | None,
        from_zone: str,
        absentee: str = "",
    ) -> Coroutine[Any, Any, AvailabilityClaimed | NotClaimed]:
        """Claims a driver who works in `from_zone`, and the trip that is to be released.

        `absentee` is an address: the claim is not granted where that user is present.
        """
        trip_id, driver_id = attempt.trip_id, attempt.driver_id
        driver, driver_claim = keys.driver(driver_id), keys.driver_claim(driver_id)
        names = (
            driver,
            driver_claim,
            keys.trip(trip_id) if trip_id else driver,
            keys.trip_claim(trip_id) if trip_id else driver_claim,
            keys.present,
        )
        args = (trip_id, int(goes_offline), int(changes_zone), vehicle_type or "", absentee, from_zone)
        decode = availability_claimed(driver_id, keys.zone)
        return self._claim("claim_availability", keys, attempt, names, args, decode)

    def claim_decline(
        self, keys: Keys, attempt: Attempt, *, version: int | None
    ) -> Coroutine[Any, Any, DeclineClaimed | NotClaimed]:
        """Lets a driver decline a pending trip."""
        names = (keys.trip(attempt.trip_id), keys.trip_claim(attempt.trip_id))
        args = ("" if version is None else version,)
        return self._claim("claim_decline", keys, attempt, names, args, decline_claimed)

    async def _claim(
        self,
        script: str,
        keys: Keys,
        attempt: Attempt,
        names: Sequence[str],
        args: Sequence[Any],
        claimed: Callable[..., _ClaimedT],
    ) -> _ClaimedT | NotClaimed:
        """Runs a claim: keys and arguments begin as lua/lib/claim.lua says, and end with the limits.

        Raises CorruptState where a key holds what cannot be decoded.
        """
        limit_names, rates = limit_keys_and_rates(keys, attempt.limits)
        key = attempt.key
        all_names = (keys.epoch, attempt.record_key(keys), keys.claims, *names, *limit_names)
        reply = await self._pipeline.run(
            script,
            all_names,
            (
                attempt.token, attempt.lease_ms, key.fingerprint if key else "", attempt.key_ttl_ms,
                " ".join(attempt.resolved), attempt.entry, *args, *rates,
            ),
        )  # fmt: skip
        try:
            return decode_claim(reply, attempt.limits, claimed)
        except UNREADABLE as error:
            raise self._pipeline.corrupt(all_names, repr(error)) from error

    async def forget_refusal(self, keys: Keys, attempt: Attempt) -> None:
        """Forgets the refusal that is kept for the attempt's key, if one is. What else might be written
        in between is an answer that Postgres has as well."""
        if attempt.key is not None:
            record = attempt.record_key(keys)
            kept: str | None = await self._pipeline.command("GET", record)
            if kept is not None and kept.startswith("N "):
                await self._pipeline.command("DEL", record)

    async def release_claim(self, keys: Keys, attempt: Attempt, *, gives_back: bool = False) -> int:
        """Drops the attempt's claims and its idempotency lease. Returns how many claims.

        `gives_back` has the limits forget the request.
        """
        limit_names, _ = limit_keys_and_rates(keys, attempt.limits if gives_back else ())
        dropped: int = await self._pipeline.run(
            "release_claim",
            (
                keys.trip_claim(attempt.trip_id or NOBODY),
                keys.driver_claim(attempt.driver_id or NOBODY),
                keys.claims, attempt.record_key(keys), *limit_names,
            ),
            (attempt.token, attempt.entry, int(attempt.key is not None), attempt.lease_ms),
        )  # fmt: skip
        return dropped

    async def sweep_claims(self, keys: Keys, *, max_entries: int = 100) -> list[OverdueClaim]:
        """Attempts whose lease is over without a settle; each goes to one sweeper at a time."""
        reply: list[str] = await self._pipeline.run(
            "sweep_claims", (keys.claims,), (max_entries, _SWEEP_AGAIN_MS)
        )
        return [claim for entry in reply if (claim := await self._decoded(keys, entry)) is not None]

    async def _decoded(self, keys: Keys, entry: str) -> OverdueClaim | None:
        """The attempt of an entry; one that no server can have written is dropped."""
        try:
            return OverdueClaim.decode(entry)
        except ValueError:
            log.warning("no attempt, and dropped", zone=keys.zone, entry=entry)
            await self._pipeline.command("ZREM", keys.claims, entry)
            return None

    async def forget_overdue(self, keys: Keys, claim: OverdueClaim) -> None:
        """Forgets an overdue attempt: what became of it is known."""
        await self._pipeline.command("ZREM", keys.claims, claim.entry)
