"""Claims while a zone's Redis is away: the rules of the Lua scripts over rows of Postgres.

A claim here keeps the requests of this process apart, as the scripts do for all servers. Between servers
the commit decides: it locks driver and trip (`SELECT … FOR NO KEY UPDATE`) and looks again. A crowd on
one server so costs one commit, and a rival on another server a second look.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar

from dispatcher.core.actors import Actor
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import LimitState
from dispatcher.core.times import now_ms
from dispatcher.core.trips import Status, Trip
from dispatcher.live.claim_results import (
    UNRESOLVED,
    AcceptClaimed,
    AvailabilityClaimed,
    ClaimCode,
    CreationClaimed,
    DeclineClaimed,
    NotClaimed,
    Refused,
    Replayed,
    TransitionClaimed,
    Unresolved,
)
from dispatcher.live.claims import Attempt, Resolved
from dispatcher.live.idempotency import KeptAnswer, KeptRefusal
from dispatcher.live.keys import Keys
from dispatcher.service.claim_rules import (
    NOT_KEPT,
    NOT_TOLD,
    why_no_availability,
    why_no_creation,
    why_no_transition,
    why_not_accept,
    why_not_pending,
)
from dispatcher.service.ledger_rows import KeyId, LedgerRows, key_id
from dispatcher.service.local_limits import LocalLimits

#: Refusals that are remembered at most, for retries with the same key; the oldest go first.
_MAX_REFUSALS: Final = 20_000

_ClaimedT = TypeVar("_ClaimedT")


class LedgerClaims:
    """The methods of `ClaimScripts`, and their answers. All raise StoreUnavailable."""

    def __init__(self, rows: LedgerRows, limits: LocalLimits) -> None:
        self._rows = rows
        self._limits = limits
        # What this process' attempts hold: whose, and until when by the monotonic clock.
        self._held: dict[str, tuple[str, float]] = {}
        self._refusals: OrderedDict[KeyId, tuple[str, KeptRefusal]] = OrderedDict()

    async def claim_accept(
        self, keys: Keys, attempt: Attempt, *, version: int | None, policy: Literal["open", "offered"]
    ) -> AcceptClaimed | NotClaimed:
        """Claims trip and driver for an accept."""
        looked = await self._look(
            attempt,
            partial(self._rows.trips.find, attempt.trip_id),
            partial(self._rows.drivers.find, attempt.driver_id),
            partial(self._rows.offers.find, attempt.trip_id),
        )
        if not isinstance(looked, list):
            return looked
        trip, found, offers = looked
        driver, offered = found[0] if found else None, offers or []
        held, held_driver = _trip(attempt.trip_id), _driver(attempt.driver_id)
        code = why_not_accept(
            trip, driver, zone=keys.zone, version=version,
            offered=offered if policy == "offered" else None,
            is_trip_held=self._is_held(held), is_driver_held=self._is_held(held_driver),
        )  # fmt: skip
        return self._decide(
            code, attempt, trip, (held, held_driver),
            lambda limit: AcceptClaimed(
                now_ms(), limit, trip, driver.vehicle_type if driver else "", offered
            ),
        )  # fmt: skip

    async def claim_transition(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        version: int | None,
        actor: Actor,
        sources: Iterable[Status],
    ) -> TransitionClaimed | NotClaimed:
        """Claims a trip that exists and is in one of the states `sources`."""
        looked = await self._look(
            attempt,
            partial(self._rows.trips.find, attempt.trip_id),
            partial(self._rows.offers.find, attempt.trip_id),
        )
        if not isinstance(looked, list):
            return looked
        (trip, offers), held = looked, _trip(attempt.trip_id)
        code = why_no_transition(
            trip, actor, version=version, sources=sources, is_held=self._is_held(held)
        )
        return self._decide(
            code, attempt, trip, (held,),
            lambda limit: TransitionClaimed(now_ms(), limit, trip, offers or []),
        )  # fmt: skip

    async def claim_creation(self, keys: Keys, attempt: Attempt) -> CreationClaimed | NotClaimed:
        """Claims a trip's id."""
        looked = await self._look(attempt, partial(self._rows.trips.find, attempt.trip_id))
        if not isinstance(looked, list):
            return looked
        (trip,), held = looked, _trip(attempt.trip_id)
        code = why_no_creation(trip, is_held=self._is_held(held))
        return self._decide(code, attempt, trip, (held,), lambda limit: CreationClaimed(now_ms(), limit))

    async def claim_availability(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        goes_offline: bool,
        changes_zone: bool,
        vehicle_type: str | None,
        from_zone: str,
        absentee: str = "",
    ) -> AvailabilityClaimed | NotClaimed:
        """Claims a driver who works in `from_zone`, and the trip that is to be released.

        Nobody is judged absent while presence cannot be told: with `absentee` it is not granted.
        """
        if absentee:
            return Unresolved(ClaimCode.CAME_BACK, None)
        looked = await self._look(
            attempt, partial(self._rows.driver_and_trip, attempt.driver_id, from_zone)
        )
        if not isinstance(looked, list):
            return looked
        ((driver, fix_ms, trip),) = looked
        held = _driver(attempt.driver_id)
        held_trip = _trip(driver.trip_id or "")
        code = why_no_availability(
            driver, trip, from_zone=from_zone, claimed_trip=attempt.trip_id,
            changes_zone=changes_zone, vehicle_type=vehicle_type,
            is_held=self._is_held(held) or self._is_held(held_trip),
        )  # fmt: skip
        if code is ClaimCode.DRIVER_MOVED:
            return Unresolved(code, None, driver.trip_id or "")
        releases = trip is not None and trip.current_status in (Status.ACCEPTED, Status.ARRIVED)
        released = trip if goes_offline and releases else None
        return self._decide(
            code, attempt, trip, (held, held_trip) if released else (held,),
            lambda limit: AvailabilityClaimed(now_ms(), limit, driver, released, fix_ms),
        )  # fmt: skip

    async def claim_decline(
        self, keys: Keys, attempt: Attempt, *, version: int | None
    ) -> DeclineClaimed | NotClaimed:
        """Lets a driver decline a pending trip."""
        looked = await self._look(attempt, partial(self._rows.trips.find, attempt.trip_id))
        if not isinstance(looked, list):
            return looked
        (trip,) = looked
        return self._decide(
            why_not_pending(trip, version), attempt, trip, (),
            lambda limit: DeclineClaimed(now_ms(), limit, trip),
        )  # fmt: skip

    def drop(self, attempt: Attempt) -> None:
        """Drops what the attempt holds."""
        subjects = [_trip(attempt.trip_id), _driver(attempt.driver_id)]
        if attempt.key is not None:
            subjects.append(_in_flight(attempt.key))
        for subject in subjects:
            if self._held.get(subject, ("",))[0] == attempt.token:
                del self._held[subject]

    # --- how every claim begins and ends, as in lua/lib/claim.lua

    async def _look(
        self, attempt: Attempt, *looks: Callable[[], Awaitable[Any]]
    ) -> list[Any] | Replayed | Refused:
        """What the looks find; or what is to be answered whatever they find."""
        if (known := self._known(attempt)) is not None:
            return known
        found = await asyncio.gather(*(look() for look in looks))
        # The key's answer comes last: whoever has seen an effect sees its answer, too.
        stored = await self._rows.answers.find(key_id(attempt.key)) if attempt.key is not None else None
        if stored is None or attempt.key is None:
            return found
        _, limit = self._limits.check(attempt.limits)
        if stored.fingerprint != attempt.key.fingerprint:
            return Refused(ClaimCode.KEY_REUSED, limit)
        return Replayed(limit, KeptAnswer(stored.status, stored.body))

    def _known(self, attempt: Attempt) -> Replayed | Refused | None:
        """What is known without asking: the key's refusal, its request that is under way, the limits."""
        is_admitted, limit = self._limits.check(attempt.limits)
        if (key := attempt.key) is not None:
            if (known := self._refusals.get(key_id(key))) is not None:
                fingerprint, refusal = known
                if fingerprint != key.fingerprint:
                    return Refused(ClaimCode.KEY_REUSED, limit)
                return Replayed(limit, refusal)
            if self._is_held(_in_flight(key)):
                return Refused(ClaimCode.REQUEST_IN_PROGRESS, limit)
        if not is_admitted and Resolved.LIMITS not in attempt.resolved:
            return Refused(ClaimCode.RATE_LIMITED, limit)
        return None

    def _decide(
        self,
        code: ClaimCode | None,
        attempt: Attempt,
        trip: Trip | None,
        subjects: Sequence[str],
        claimed: Callable[[LimitState | None], _ClaimedT],
    ) -> _ClaimedT | NotClaimed:
        """Grants the claim, unless there is a reason not to. Nothing is awaited from the looks on."""
        if code in UNRESOLVED:
            return Unresolved(code, None)
        # A limit or a twin of the request may have come up during the looks.
        if (known := self._known(attempt)) is not None:
            return known
        _, limit = self._limits.check(attempt.limits)
        if Resolved.LIMITS not in attempt.resolved:
            limit = self._limits.record(attempt.limits, limit)
        if code is not None:
            return self._refuse(code, attempt, trip, limit)
        until = time.monotonic() + attempt.lease_ms / 1000
        held = [*subjects, _in_flight(attempt.key)] if attempt.key is not None else subjects
        for subject in held:
            self._held[subject] = (attempt.token, until)
        return claimed(limit)

    def _refuse(
        self, code: ClaimCode, attempt: Attempt, trip: Trip | None, limit: LimitState | None
    ) -> Refused:
        version, status = None, None
        if trip is not None and code not in NOT_TOLD:
            version, status = trip.version, trip.current_status
        if code not in NOT_KEPT and attempt.key is not None:
            kept = KeptRefusal(code.value, version, status)
            self._refusals[key_id(attempt.key)] = (attempt.key.fingerprint, kept)
            if len(self._refusals) > _MAX_REFUSALS:
                self._refusals.popitem(last=False)
        return Refused(code, limit, version, status)

    def _is_held(self, subject: str) -> bool:
        held = self._held.get(subject)
        if held is None:
            return False
        if held[1] <= time.monotonic():
            del self._held[subject]
            return False
        return True


def _trip(trip_id: str) -> str:
    return "trip " + trip_id


def _driver(driver_id: str) -> str:
    return "driver " + driver_id


def _in_flight(key: IdempotencyKey) -> str:
    return " ".join(("key", *key_id(key)))
