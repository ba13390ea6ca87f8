"""Claims that cannot be decided yet: what Redis lacks for one is brought from Postgres."""

from __future__ import annotations

from dispatcher.live.claim_results import UNRESOLVED, ClaimCode, Unresolved
from dispatcher.live.claims import Attempt, Resolved
from dispatcher.live.keys import Keys
from dispatcher.observe.series import CLAIMS_UNRESOLVED, REPAIRED
from dispatcher.service.answers import Answer, stored_answer
from dispatcher.service.rehydration import Rehydration

CLAIMS_UNRESOLVED.know((code.value,) for code in UNRESOLVED)


class UnresolvedClaims:
    """Provides what a claim misses. Raises StoreUnavailable."""

    def __init__(self, rehydration: Rehydration) -> None:
        self._rehydration = rehydration

    async def provide(self, keys: Keys, attempt: Attempt, missing: Unresolved) -> Attempt | Answer:
        """Brings to Redis what a claim misses, and returns the attempt that is to ask again; or the
        answer, where Postgres has one for the key."""
        match missing.code:
            case ClaimCode.COLD:
                await self._rehydration.warm(keys.zone)
            case ClaimCode.KEY_UNRESOLVED if attempt.key is not None:
                stored = await self._rehydration.reload_answer(
                    keys, attempt.key, trip_id=attempt.trip_id, driver_id=attempt.driver_id
                )
                if stored is not None:
                    return stored_answer(attempt.key, stored, missing.limit)
                return resolve(attempt, Resolved.KEY)
            case ClaimCode.TRIP_UNKNOWN:
                if await self._rehydration.reload_trip(keys, attempt.trip_id) is None:
                    return resolve(attempt, Resolved.TRIP)
                REPAIRED.add("reloaded_trip")
            case ClaimCode.DRIVER_UNKNOWN | ClaimCode.DRIVER_ELSEWHERE as code:
                driver = await self._rehydration.reload_driver(keys, attempt.driver_id)
                # Who was elsewhere may have come back unheard: the next claim of this zone tells.
                if driver is None or code is ClaimCode.DRIVER_ELSEWHERE:
                    return resolve(attempt, Resolved.DRIVER)
                REPAIRED.add("reloaded_driver")
            case ClaimCode.DRIVER_MOVED:
                return attempt._replace(trip_id=missing.trip_id)
        return attempt


def resolve(attempt: Attempt, what: Resolved) -> Attempt:
    """The attempt, of which one thing more is known."""
    return attempt._replace(resolved=attempt.resolved | {what})
