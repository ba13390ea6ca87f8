"""The one start and stop contract of background jobs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import structlog

from dispatcher.core.errors import StoreUnavailable

log = structlog.get_logger("dispatcher.workers")


class Periodic:
    """Runs a job again and again, `interval_s` after its last end. A failure is logged, not fatal.

    Intervals vary by a tenth, so that servers which started together do not stay in step.
    """

    def __init__(self, name: str, interval_s: float, job: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self._interval_s = interval_s
        self._job = job
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; the first run comes after one interval."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Lets a run that has begun come to its end."""
        self._stop.set()
        if self._task:
            await self._task

    async def _run(self) -> None:
        while True:
            pause = self._interval_s * random.uniform(0.9, 1.1)  # noqa: S311
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            if self._stop.is_set():
                return
            try:
                await self._job()
            except StoreUnavailable as error:
                log.warning("job is put off", job=self.name, reason=str(error))
            except Exception:
                log.exception("job failed", job=self.name)
