"""Redis decides: a script grants each claim, and learns what was committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from dispatcher.core.authority import Authority
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.limits import LimitState
from dispatcher.core.trips import Trip
from dispatcher.live.claim_results import UNRESOLVED, ClaimCode, Unresolved
from dispatcher.live.claims import Attempt, ClaimScripts, Resolved
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.settle import Settler
from dispatcher.observe.series import CLAIMS_UNRESOLVED, REPAIRED
from dispatcher.service.abandoned_claims import AbandonedClaims
from dispatcher.service.answers import Answer, stored_answer
from dispatcher.service.authorities import Authorities
from dispatcher.service.local_limits import LocalLimits
from dispatcher.service.persistent_settles import PersistentSettles, Telling
from dispatcher.service.questions import Questions
from dispatcher.service.rehydration import Rehydration

#: A zone, and the id of a trip.
_TripOfZone = tuple[str, str]

CLAIMS_UNRESOLVED.know((code.value,) for code in UNRESOLVED)


class RedisDecider:
    """A Decider. What raises, raises StoreUnavailable."""

    def __init__(
        self,
        claims: ClaimScripts,
        settler: Settler,
        rehydration: Rehydration,
        limits: LocalLimits,
        authorities: Authorities,
    ) -> None:
        self._limits = limits
        self._authorities = authorities
        self.claims = claims
        self._abandoned = AbandonedClaims(claims)
        self._settles = PersistentSettles(settler)
        self._rehydration = rehydration
        #: By trip, as long as anybody waits: one that hangs delays no other.
        self._reloads: WeakValueDictionary[_TripOfZone, Questions[_TripOfZone, Trip]] = (
            WeakValueDictionary()
        )

    async def provide(self, keys: Keys, attempt: Attempt, missing: Unresolved) -> Attempt | Answer:
        match missing.code:
            case ClaimCode.COLD:
                await self._rehydration.warm(keys.zone)
            case ClaimCode.KEY_UNRESOLVED if attempt.key is not None:
                stored = await self._rehydration.reload_answer(
                    keys, attempt.key, trip_id=attempt.trip_id, driver_id=attempt.driver_id
                )
                if stored is not None:
                    return stored_answer(attempt.key, stored, missing.limit)
                return attempt.resolve(Resolved.KEY)
            case ClaimCode.TRIP_UNKNOWN:
                if await self._reloaded_trip(keys, attempt.trip_id) is None:
                    return attempt.resolve(Resolved.TRIP)
                REPAIRED.add("reloaded_trip")
            case ClaimCode.DRIVER_UNKNOWN | ClaimCode.DRIVER_ELSEWHERE as code:
                driver = await self._rehydration.reload_driver(keys, attempt.driver_id)
                # Who was elsewhere may have come back unheard: the next claim of this zone tells.
                if driver is None or code is ClaimCode.DRIVER_ELSEWHERE:
                    return attempt.resolve(Resolved.DRIVER)
                REPAIRED.add("reloaded_driver")
            case ClaimCode.DRIVER_MOVED:
                return attempt._replace(trip_id=missing.trip_id)
        return attempt

    async def stands(self, keys: Keys, attempt: Attempt, authority: Authority) -> bool:
        if await self._authorities.still_has_redis(keys.zone, authority):
            return True
        with contextlib.suppress(StoreUnavailable):
            await self.claims.forget_refusal(keys, attempt)
        return False

    def admitted(self, attempt: Attempt, limit: LimitState | None) -> None:
        if not attempt.resolved or Resolved.LIMITS not in attempt.resolved:
            self._limits.note(attempt.limits, limit)

    async def reload_trip(self, keys: Keys, trip_id: str) -> None:
        await self._reloaded_trip(keys, trip_id)

    async def _reloaded_trip(self, keys: Keys, trip_id: str) -> Trip | None:
        """The trip, brought up to what Postgres knows. A crowd that needs it asks together: each by
        itself would read its history, and tell once more what was missed."""
        subject = (keys.zone, trip_id)
        reloads = self._reloads.get(subject)
        if reloads is None:
            reloads = self._reloads[subject] = Questions(self._reload_trips)
        return await reloads.find(subject)

    async def _reload_trips(self, subjects: Sequence[_TripOfZone]) -> Mapping[_TripOfZone, Trip]:
        trips = {}
        for zone, trip_id in subjects:
            trip = await self._rehydration.reload_trip(keys_of(zone), trip_id)
            if trip is not None:
                trips[zone, trip_id] = trip
        return trips

    async def catch_up(self, keys: Keys, attempt: Attempt) -> None:
        await self._rehydration.reload(keys, attempt.trip_id, attempt.driver_id)

    async def keep_answer(self, keys: Keys, attempt: Attempt) -> None:
        assert attempt.key is not None
        await self._rehydration.reload_answer(
            keys, attempt.key, trip_id=attempt.trip_id, driver_id=attempt.driver_id
        )

    async def release(self, keys: Keys, attempt: Attempt, *, gives_back: bool = False) -> None:
        try:
            await self.claims.release_claim(keys, attempt, gives_back=gives_back)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            self.let_go(keys, attempt)
            if isinstance(error, asyncio.CancelledError):
                raise

    def let_go(self, keys: Keys, attempt: Attempt) -> None:
        self._abandoned.let_go(keys, attempt)

    def tell(self, told: list[Telling]) -> Coroutine[Any, Any, None]:
        return self._settles.settle(told)

    def waiting(self) -> dict[str, int]:
        return {"settles": len(self._settles), "releases": len(self._abandoned)}

    async def close(self) -> None:
        await self._abandoned.close()
        await self._settles.close()
