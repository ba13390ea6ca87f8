"""Claims while a zone's Redis is away: the rules of the Lua scripts over rows of Postgres.

A claim here keeps the requests of this process apart, as the scripts do for all servers. Between servers
the commit decides: it locks driver and trip (`SELECT … FOR NO KEY UPDATE`) and looks again. A crowd on
one server so costs one commit, and a rival on another server a second look.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from dispatcher.core.actors import Actor
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limits, LimitState
from dispatcher.core.trips import Status
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
from dispatcher.live.claims import WAITED_FOR, Attempt, Resolved
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
from dispatcher.service.held_subjects import HeldSubjects
from dispatcher.service.ledger_rows import Found, KeyId, LedgerRows, Wanted, key_id, unknown_driver
from dispatcher.service.local_limits import LocalLimits

#: Refusals that are remembered at most, for retries with the same key; the oldest go first.
_MAX_REFUSALS: Final = 20_000


class _Begun(NamedTuple):
    """A claim that looks: the limit to report as it was checked and as it is counted, the limits that
    have counted the request for this claim, and what was found. Claims are granted with the time of what
    was found: servers' clocks differ, and events are looked for by their times."""

    as_checked: LimitState | None
    limit: LimitState | None
    counted: Limits
    found: Found = Found(0)


class LedgerClaims:
    """The methods of `ClaimScripts`, and their answers. All raise StoreUnavailable."""

    def __init__(self, rows: LedgerRows, limits: LocalLimits) -> None:
        self._rows = rows
        self._limits = limits
        self._held = HeldSubjects()
        self._refusals: OrderedDict[KeyId, tuple[str, KeptRefusal]] = OrderedDict()

    async def claim_accept(
        self, keys: Keys, attempt: Attempt, *, version: int | None, policy: Literal["open", "offered"]
    ) -> AcceptClaimed | NotClaimed:
        """Claims trip and driver for an accept."""
        begun = await self._begin(
            attempt, Wanted(attempt.trip_id, attempt.driver_id, _key_of(attempt), offers=True)
        )
        if not isinstance(begun, _Begun):
            return begun
        _, trip, driver, _, offered, _ = begun.found
        held, held_driver = _trip(attempt.trip_id), _driver(attempt.driver_id)
        code = why_not_accept(
            trip, driver, zone=keys.zone, version=version,
            offered=offered if policy == "offered" else None,
            is_trip_held=self._held.is_held(held),
            is_trip_waited_for=self._held.holder(held).endswith(WAITED_FOR),
            is_driver_held=self._held.is_held(held_driver),
        )  # fmt: skip
        if code is not None:
            return self._refuse(code, attempt, begun)
        assert trip is not None
        assert driver is not None
        self._hold(attempt, held, held_driver)
        return AcceptClaimed(begun.found.now_ms, begun.limit, trip, driver.vehicle_type, list(offered))

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
        begun = await self._begin(attempt, Wanted(attempt.trip_id, key=_key_of(attempt), offers=True))
        if not isinstance(begun, _Begun):
            return begun
        trip, held = begun.found.trip, _trip(attempt.trip_id)
        code = why_no_transition(
            trip, actor, version=version, sources=sources, is_held=self._held.is_held(held)
        )
        if code is not None:
            return self._refuse(code, attempt, begun)
        assert trip is not None
        self._hold(attempt, held)
        return TransitionClaimed(begun.found.now_ms, begun.limit, trip, list(begun.found.offered))

    async def claim_creation(self, keys: Keys, attempt: Attempt) -> CreationClaimed | NotClaimed:
        """Claims a trip's id."""
        begun = await self._begin(attempt, Wanted(attempt.trip_id, key=_key_of(attempt)))
        if not isinstance(begun, _Begun):
            return begun
        held = _trip(attempt.trip_id)
        code = why_no_creation(begun.found.trip, is_held=self._held.is_held(held))
        if code is not None:
            return self._refuse(code, attempt, begun)
        self._hold(attempt, held)
        return CreationClaimed(begun.found.now_ms, begun.limit)

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
        begun = await self._begin(
            attempt, Wanted(driver_id=attempt.driver_id, key=_key_of(attempt), driver_trip=True)
        )
        if not isinstance(begun, _Begun):
            return begun
        _, trip, driver, fix_ms, _, _ = begun.found
        if driver is None:
            driver = unknown_driver(attempt.driver_id, from_zone)
        held = _driver(attempt.driver_id)
        held_trip = _trip(driver.trip_id or "")
        code = why_no_availability(
            driver, trip, from_zone=from_zone, claimed_trip=attempt.trip_id,
            changes_zone=changes_zone, vehicle_type=vehicle_type,
            is_held=self._held.is_held(held) or self._held.is_held(held_trip),
        )  # fmt: skip
        if code is not None:
            return self._refuse(code, attempt, begun, moved_to=driver.trip_id or "")
        releases = trip is not None and trip.current_status in (Status.ACCEPTED, Status.ARRIVED)
        released = trip if goes_offline and releases else None
        self._hold(attempt, *((held, held_trip) if released else (held,)))
        return AvailabilityClaimed(begun.found.now_ms, begun.limit, driver, released, fix_ms)

    async def claim_decline(
        self, keys: Keys, attempt: Attempt, *, version: int | None
    ) -> DeclineClaimed | NotClaimed:
        """Lets a driver decline a pending trip."""
        begun = await self._begin(attempt, Wanted(attempt.trip_id, key=_key_of(attempt)))
        if not isinstance(begun, _Begun):
            return begun
        trip = begun.found.trip
        code = why_not_pending(trip, version)
        if code is not None:
            return self._refuse(code, attempt, begun)
        assert trip is not None
        self._hold(attempt)
        return DeclineClaimed(begun.found.now_ms, begun.limit, trip)

    def drop(self, attempt: Attempt, *, gives_back: bool = False) -> None:
        """Drops what the attempt holds. `gives_back` has the limits forget the request."""
        if gives_back:
            self._limits.give_back(attempt.limits)
        subjects = [_trip(attempt.trip_id), _driver(attempt.driver_id)]
        if attempt.key is not None:
            subjects.append(_in_flight(attempt.key))
        self._held.drop(attempt.token, subjects)

    # --- how every claim begins and ends, as in lua/lib/claim.lua

    async def _begin(self, attempt: Attempt, wanted: Wanted) -> _Begun | Replayed | Refused:
        """Is the request's key known, do the limits admit it? Then what is there.

        The request is counted before anything is awaited, so that a crowd of one user's calls is not
        admitted by looks of one moment. It is given back where the answer is not to count.
        """
        is_admitted, limit = self._limits.check(attempt.limits)
        if (known := self._known(attempt, limit)) is not None:
            if attempt.key is None or key_id(attempt.key) not in self._refusals:
                return known
            # What was refused here, another server may have let through since then.
            return _stored(attempt, await self._rows.look(wanted), limit) or known
        is_counted = Resolved.LIMITS in attempt.resolved
        if not is_admitted and not is_counted:
            # The key comes before the limits: a retry of what succeeded gets its answer.
            known = await self._answered(attempt, limit)
            return known or Refused(ClaimCode.RATE_LIMITED, limit)
        self._held.make_room()
        if is_counted:
            begun = _Begun(limit, limit, ())
        else:
            begun = _Begun(limit, self._limits.record(attempt.limits, limit), attempt.limits)
        try:
            found = await self._rows.look(wanted)
        except BaseException:
            self._give_back(begun)
            raise
        # A twin of the request may have come up during the look.
        answer = _stored(attempt, found, limit) or self._known(attempt, limit)
        if answer is None:
            return begun._replace(found=found)
        self._give_back(begun)
        return answer

    async def _answered(self, attempt: Attempt, limit: LimitState | None) -> Replayed | Refused | None:
        """What Postgres has for the attempt's key alone."""
        if attempt.key is None:
            return None
        return _stored(attempt, await self._rows.look(Wanted(key=key_id(attempt.key))), limit)

    def _known(self, attempt: Attempt, limit: LimitState | None) -> Replayed | Refused | None:
        """What is known of the key without asking: its refusal, or its request that is under way."""
        if (key := attempt.key) is None:
            return None
        if (known := self._refusals.get(key_id(key))) is not None:
            fingerprint, refusal = known
            if fingerprint != key.fingerprint:
                return Refused(ClaimCode.KEY_REUSED, limit)
            return Replayed(limit, refusal)
        if self._held.is_held(_in_flight(key)):
            return Refused(ClaimCode.REQUEST_IN_PROGRESS, limit)
        return None

    def _give_back(self, begun: _Begun) -> None:
        if begun.as_checked is not None:
            self._limits.give_back(begun.counted, begun.as_checked.now_ms)

    # Nothing is awaited between a look and what comes of it: `_hold` or `_refuse`.

    def _hold(self, attempt: Attempt, *subjects: str) -> None:
        if attempt.key is not None:
            subjects = (*subjects, _in_flight(attempt.key))
        self._held.hold(attempt.token, subjects, lease_ms=attempt.lease_ms)

    def _refuse(
        self, code: ClaimCode, attempt: Attempt, begun: _Begun, *, moved_to: str = ""
    ) -> Refused | Unresolved:
        if code in UNRESOLVED:
            self._give_back(begun)
            return Unresolved(code, None, moved_to if code is ClaimCode.DRIVER_MOVED else "")
        trip, version, status = begun.found.trip, None, None
        if trip is not None and code not in NOT_TOLD:
            version, status = trip.version, trip.current_status
        if code not in NOT_KEPT and attempt.key is not None:
            kept = KeptRefusal(code.value, version, status)
            self._refusals[key_id(attempt.key)] = (attempt.key.fingerprint, kept)
            if len(self._refusals) > _MAX_REFUSALS:
                self._refusals.popitem(last=False)
        return Refused(code, begun.limit, version, status, begun.found.now_ms)


def _stored(attempt: Attempt, found: Found, limit: LimitState | None) -> Replayed | Refused | None:
    """The answer that Postgres has for the attempt's key."""
    if attempt.key is None or (stored := found.answer) is None:
        return None
    if stored.fingerprint != attempt.key.fingerprint:
        return Refused(ClaimCode.KEY_REUSED, limit)
    return Replayed(limit, KeptAnswer(stored.status, stored.body))


def _key_of(attempt: Attempt) -> KeyId | None:
    return None if attempt.key is None else key_id(attempt.key)


def _trip(trip_id: str) -> str:
    return "trip " + trip_id


def _driver(driver_id: str) -> str:
    return "driver " + driver_id


def _in_flight(key: IdempotencyKey) -> str:
    return " ".join(("key", *key_id(key)))
