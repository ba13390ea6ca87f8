"""What is made once for all who ask within some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import structlog

log = structlog.get_logger("dispatcher.heat")

#: Past this what could not be renewed is no answer any more.
STALE_S: Final = 60.0

T = TypeVar("T")


class Lasting(Generic[T]):
    """A sample of a zone. Both raise what `make` does."""

    def __init__(self, zone: str, lasts_s: float, make: Callable[[], Awaitable[T]]) -> None:
        self._zone = zone
        self._lasts_s = lasts_s
        self._make = make
        self._last: T | None = None
        self._made_s = 0.0
        self._task: asyncio.Task[T] | None = None
        self._dropping: asyncio.TimerHandle | None = None

    def last(self) -> T | None:
        """What was made, unless it is too old."""
        return self._last if time.monotonic() - self._made_s < STALE_S else None

    async def get(self) -> T:
        """The last one, or a new one. Who asks while one is made gets the one before, if it is not too
        old."""
        last = self.last()
        if last is not None and time.monotonic() - self._made_s < self._lasts_s:
            return last
        if self._task is None:
            self._task = asyncio.create_task(self.renew())
            self._task.add_done_callback(self._renewed)
        return last if last is not None else await asyncio.shield(self._task)

    async def renew(self) -> T:
        """A new one."""
        made = await self._make()
        self._last, self._made_s = made, time.monotonic()
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = asyncio.get_running_loop().call_later(STALE_S, self._drop)
        return made

    def _drop(self) -> None:
        self._last = None

    def _renewed(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            log.info("heat not sampled", zone=self._zone, reason=repr(error))

    async def close(self) -> None:
        """Ends what goes on in the background."""
        if self._dropping is not None:
            self._dropping.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
