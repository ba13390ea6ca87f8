"""Puts right what a server left behind: overdue claims, cold zones, stale fixes."""

from __future__ import annotations

import structlog

from dispatcher.core.zones import Zones
from dispatcher.live.claims import ClaimScripts
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.positions import PositionScripts
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.reconcile")


class Reconcile:
    """Looks after every zone. Any server may; a claim is handed to one of them at a time."""

    name = "reconcile"

    def __init__(
        self,
        *,
        zones: Zones,
        claims: ClaimScripts,
        positions: PositionScripts,
        rehydration: Rehydration,
        fix_age_s: int,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s
        self._zones = zones
        self._claims = claims
        self._positions = positions
        self._rehydration = rehydration
        self._fix_age_ms = fix_age_s * 1000

    async def run(self) -> None:
        for zone in self._zones.names():
            keys = keys_of(zone)
            if not await self._rehydration.check_epoch(zone):
                continue
            await self._sweep_claims(keys)
            await self._positions.sweep_fixes(keys, fix_age_ms=self._fix_age_ms)

    async def _sweep_claims(self, keys: Keys) -> None:
        for claim in await self._claims.sweep_claims(keys):
            # Postgres knows whether that attempt was committed; then it is settled, from the outbox.
            await self._rehydration.reload(
                keys, claim.trip_id or "", claim.driver_id or "", attempt=claim.token
            )
            await self._claims.forget_overdue(keys, claim)
            log.info("overdue claim swept", zone=keys.zone, token=claim.token, trip_id=claim.trip_id)
