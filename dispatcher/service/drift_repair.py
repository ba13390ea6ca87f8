"""Makes what differs between Redis and Postgres equal again, each thing by itself."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.trips import Status
from dispatcher.live.claims import ClaimScripts, OverdueClaim
from dispatcher.live.inspection import Inspection
from dispatcher.live.keys import Keys
from dispatcher.service.consistency import Consistency
from dispatcher.service.drift import Drift, DriftKind
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.drift")


class DriftRepair:
    """Repairs by loading from Postgres, which is the truth; servers go on meanwhile.

    All raise StoreUnavailable.
    """

    def __init__(
        self,
        *,
        inspection: Inspection,
        consistency: Consistency,
        claims: ClaimScripts,
        rehydration: Rehydration,
    ) -> None:
        self._inspection = inspection
        self._consistency = consistency
        self._claims = claims
        self._rehydration = rehydration

    async def repair(self, keys: Keys, drifts: Sequence[Drift]) -> None:
        """Repairs what a check has found."""
        for drift in drifts:
            await self._repair(keys, drift)
            log.info("drift repaired", zone=keys.zone, kind=drift.kind, subject=drift.subject)

    async def _repair(self, keys: Keys, drift: Drift) -> None:
        subject = drift.subject
        match drift.kind:
            case DriftKind.TRIP:
                await self._rehydration.reload_trip(keys, subject)
                if await self._consistency.remains(keys, drift):
                    # What is newer than in Postgres, or broken, does not give way by itself.
                    await self._inspection.drop(keys.trip(subject))
                    await self._rehydration.reload_trip(keys, subject)
            case DriftKind.DRIVER:
                await self._rehydration.reload_driver(keys, subject)
                if await self._consistency.remains(keys, drift):
                    await self._inspection.drop(keys.driver(subject))
                    await self._rehydration.reload_driver(keys, subject)
            case DriftKind.GEO:
                await self._inspection.list_by_state(keys, subject)
            case DriftKind.OFFERS:
                await self._withdraw(keys, subject)
            case DriftKind.WAVES:
                trip = (await self._inspection.trips(keys, [subject]))[subject]
                if trip.status == Status.PENDING:
                    await self._inspection.make_due(keys, subject)
                else:
                    await self._inspection.drop_member(keys.waves, subject)
            case DriftKind.CLAIMS:
                await self._settle(keys, OverdueClaim.decode(subject))
            case DriftKind.PRESENCE:
                await self._inspection.expect(keys, subject)
            case DriftKind.ANSWERS:
                user_id, endpoint, key = subject.split(" ", 2)
                await self._inspection.drop(keys.idem(user_id, endpoint, key))
                await self._rehydration.reload_answer(keys, IdempotencyKey(user_id, endpoint, key, ""))

    async def _withdraw(self, keys: Keys, trip_id: str) -> None:
        for driver_id in (await self._inspection.open_offers(keys, [trip_id]))[trip_id]:
            await self._inspection.drop_member(keys.inbox(driver_id), trip_id)
        await self._inspection.drop(keys.offers(trip_id))

    async def _settle(self, keys: Keys, claim: OverdueClaim) -> None:
        await self._rehydration.reload(
            keys, claim.trip_id or "", claim.driver_id or "", attempt=claim.token
        )
        await self._claims.forget_overdue(keys, claim)
