"""Settles that do not give up at once: what is committed is to be heard."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import StoredAnswer
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settle import Settlement, Settler

log = structlog.get_logger("dispatcher.coordinator")

#: How often a settle is tried before its request is answered.
_MAX_TRIES: Final = 2
#: Settles that wait at once; in an outage, the others are left to the reconcile job.
_MAX_TASKS: Final = 1_000
_FIRST_WAIT_S: Final = 0.005
_MAX_WAIT_S: Final = 0.25


class PersistentSettles:
    """Settles what is durable: what Redis does not take goes on in the background, until the attempt's
    lease is over, from when on the reconcile job looks after it."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> None:
        """Settles, now or later; the change is durable, so it is answered in any case."""
        for _ in range(_MAX_TRIES):
            try:
                await self._settler.settle(keys, attempt, settlement, answer)
            except StoreUnavailable as error:
                reason = str(error)
            else:
                return
        log.warning(
            "committed but not settled", zone=keys.zone, trip_id=attempt.trip_id,
            token=attempt.token, reason=reason,
        )  # fmt: skip
        if len(self._tasks) < _MAX_TASKS:
            task = asyncio.create_task(self._settle_later(keys, attempt, settlement, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Leaves the rest to other servers' reconcile jobs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle_later(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> None:
        wait_s, lease_over_at = _FIRST_WAIT_S, time.monotonic() + attempt.lease_ms / 1000
        while time.monotonic() < lease_over_at:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
            try:
                await self._settler.settle(keys, attempt, settlement, answer)
            except StoreUnavailable:
                continue
            return
