"""What Redis did not take from an attempt is tried again in the background, until its lease is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.claims import Attempt

#: Attempts that are looked after at once; in an outage, the others are left to their lease.
_MAX_TASKS: Final = 1_000


class LeaseRetries:
    """Bounded background work, one task an attempt. The reconcile job looks after what is left."""

    def __init__(self, *, first_wait_s: float, max_wait_s: float) -> None:
        self._first_wait_s = first_wait_s
        self._max_wait_s = max_wait_s
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many attempts are looked after."""
        return len(self._tasks)

    def start(self, attempt: Attempt, work: Callable[[], Awaitable[bool]], *, at_once: bool) -> bool:
        """Calls `work` until it returns true; StoreUnavailable means not yet. Waits double.

        False where too much is under way already: nothing is done then.
        """
        if len(self._tasks) >= _MAX_TASKS:
            return False
        task = asyncio.get_running_loop().create_task(self._retry(attempt, work, at_once))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Leaves the rest to its lease."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _retry(self, attempt: Attempt, work: Callable[[], Awaitable[bool]], at_once: bool) -> None:
        wait_s, lease_over_at = self._first_wait_s, time.monotonic() + attempt.lease_ms / 1000
        if at_once and await _is_done(work):
            return
        while time.monotonic() < lease_over_at:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._max_wait_s)
            if await _is_done(work):
                return


async def _is_done(work: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await work()
    except StoreUnavailable:
        return False
