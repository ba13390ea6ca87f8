"""Claims whose request has ended without a change: they are let go of in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.claims import Attempt, ClaimScripts
from dispatcher.live.keys import Keys

log = structlog.get_logger("dispatcher.coordinator")

#: Claims that are let go of at once; in an outage, the others are left to their lease.
_MAX_TASKS: Final = 1_000
_FIRST_WAIT_S: Final = 0.02
_MAX_WAIT_S: Final = 1.0


class AbandonedClaims:
    """Lets go of claims that may have been granted, and has the limits give back the request."""

    def __init__(self, claims: ClaimScripts) -> None:
        self._claims = claims
        self._tasks: set[asyncio.Task[None]] = set()

    def let_go(self, keys: Keys, attempt: Attempt) -> None:
        """Drops the attempt's claims as soon as Redis answers; nobody waits for it."""
        if len(self._tasks) >= _MAX_TASKS:
            log.warning("claim left to its lease", trip_id=attempt.trip_id, token=attempt.token)
            return
        task = asyncio.get_running_loop().create_task(self._release(keys, attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Leaves the rest to their lease."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _release(self, keys: Keys, attempt: Attempt) -> None:
        # A Redis that was silent may run the claim after a release that came by another connection,
        # so there is more than one try until something was there to be dropped.
        wait_s, lease_over_at = _FIRST_WAIT_S, time.monotonic() + attempt.lease_ms / 1000
        while time.monotonic() < lease_over_at:
            try:
                if await self._claims.release_claim(keys, attempt, gives_back=True):
                    return
            except StoreUnavailable:
                pass
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
