"""Claims whose request has ended without a change: they are let go of in the background."""

from __future__ import annotations

from functools import partial

import structlog

from dispatcher.live.claims import Attempt, ClaimScripts
from dispatcher.live.keys import Keys
from dispatcher.service.lease_retries import LeaseRetries

log = structlog.get_logger("dispatcher.coordinator")


class AbandonedClaims:
    """Lets go of claims that may have been granted, and has the limits give back the request."""

    def __init__(self, claims: ClaimScripts) -> None:
        self._claims = claims
        self._retries = LeaseRetries(first_wait_s=0.02, max_wait_s=1.0)

    def __len__(self) -> int:
        """How many claims are being let go of."""
        return len(self._retries)

    def let_go(self, keys: Keys, attempt: Attempt) -> None:
        """Drops the attempt's claims as soon as Redis answers; nobody waits for it."""
        if not self._retries.start(attempt, partial(self._release, keys, attempt), at_once=True):
            log.warning("claim left to its lease", trip_id=attempt.trip_id, token=attempt.token)

    async def _release(self, keys: Keys, attempt: Attempt) -> bool:
        # A Redis that was silent may run the claim after a release that came by another connection, so
        # there is more than one try until something was there to be dropped.
        return await self._claims.release_claim(keys, attempt, gives_back=True) > 0

    async def close(self) -> None:
        """Leaves the rest to their lease."""
        await self._retries.close()
