"""Puts right what a server left behind: overdue claims, cold zones, stale fixes."""

from __future__ import annotations

import time
from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.claims import ClaimScripts, OverdueClaim
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.positions import PositionScripts
from dispatcher.observe.series import REPAIRED
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.reconcile")

#: Attempts that are remembered between their two looks; those beyond have one look.
_MAX_LOOKED_AT: Final = 10_000
#: How long they are: a second look is due 10 s after the first. One that was settled meanwhile has none.
_REMEMBERED_S: Final = 60.0


class Reconcile:
    """Looks after one zone: a job each, so that no zone waits for the Redis of another one.

    Any server may; a claim is handed to one of them at a time.
    """

    def __init__(
        self,
        *,
        zone: str,
        claims: ClaimScripts,
        positions: PositionScripts,
        rehydration: Rehydration,
        fix_age_s: int,
        interval_s: float,
    ) -> None:
        self.name = f"reconcile-{zone}"
        self.interval_s = interval_s
        self._zone = zone
        self._claims = claims
        self._positions = positions
        self._rehydration = rehydration
        self._fix_age_ms = fix_age_s * 1000
        #: Tokens of attempts that were looked at once, and when, by the monotonic clock, oldest first.
        self._looked_at: dict[str, float] = {}

    async def run(self) -> None:
        """Raises StoreUnavailable."""
        if await self._rehydration.check_epoch(self._zone):
            await self.sweep()

    async def sweep(self) -> None:
        """Puts right what is due in a zone that is loaded. Raises StoreUnavailable."""
        keys = keys_of(self._zone)
        await self._sweep_claims(keys)
        swept = await self._positions.sweep_fixes(keys, fix_age_ms=self._fix_age_ms)
        REPAIRED.add("stale_fix", number=swept)

    async def _sweep_claims(self, keys: Keys) -> None:
        for claim in await self._claims.sweep_claims(keys):
            try:
                await self._settle_overdue(keys, claim)
            except StoreUnavailable:
                raise
            except Exception:
                # It is handed out again; the other claims, and the fixes, do not wait for it.
                log.exception(
                    "overdue claim not swept",
                    zone=keys.zone, token=claim.token, trip_id=claim.trip_id,
                )  # fmt: skip

    async def _settle_overdue(self, keys: Keys, claim: OverdueClaim) -> None:
        # Postgres knows whether that attempt was committed; then it is settled, from the outbox.
        await self._rehydration.reload(
            keys, claim.trip_id or "", claim.driver_id or "", attempt=claim.token
        )
        if self._is_second_look(claim):
            await self._claims.forget_overdue(keys, claim)
            return
        REPAIRED.add("overdue_claim")
        log.info("overdue claim swept", zone=keys.zone, token=claim.token, trip_id=claim.trip_id)

    def _is_second_look(self, claim: OverdueClaim) -> bool:
        """Whether nothing more can come of the attempt. After the first look it is handed out once more:
        a commit that stood still on its way, in a Postgres that was frozen, may go on with what we ask,
        and would never be heard of."""
        now = time.monotonic()
        while self._looked_at and now - next(iter(self._looked_at.values())) > _REMEMBERED_S:
            del self._looked_at[next(iter(self._looked_at))]
        if self._looked_at.pop(claim.token, None) is not None or len(self._looked_at) >= _MAX_LOOKED_AT:
            return True
        self._looked_at[claim.token] = now
        return False
