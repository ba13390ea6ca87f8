"""How a server is told to stop, and how long each part of it may take for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, TypeVar

#: A server is gone this long after its drain window, whatever hangs.
STOPPED_AFTER_WINDOW_S: Final = 5.0
#: A clean-up may wait anew after it was cancelled, so it is cancelled as often as this.
_CANCELS: Final = 10
_CANCEL_INTERVAL_S: Final = 0.05

T = TypeVar("T")


class StopSignal(asyncio.Event):
    """Set when the server is to stop; knows how much of its time is left from then on.

    `window_s` is the drain window, over which clients are sent away.
    """

    def __init__(self, window_s: float) -> None:
        super().__init__()
        self._window_s = window_s
        self._set_at: float | None = None

    def set(self) -> None:
        """Begin the stop; later calls do not begin it anew."""
        if self._set_at is None:
            self._set_at = time.monotonic()
        super().set()

    def remaining_s(self, after_window_s: float) -> float:
        """The time in s until `after_window_s` behind the drain window; 0 once it is over."""
        waited_s = 0.0 if self._set_at is None else time.monotonic() - self._set_at
        return max(0.0, self._window_s + after_window_s - waited_s)

    async def finish(self, work: Awaitable[object], after_window_s: float) -> bool:
        """Wait for a part of the stop until `after_window_s` behind the drain window.

        False where it was given up then. Raises what it raises.
        """
        task = asyncio.ensure_future(work)
        await asyncio.wait((task,), timeout=self.remaining_s(after_window_s))
        for _ in range(_CANCELS):
            if task.done():
                break
            task.cancel()
            await asyncio.wait((task,), timeout=_CANCEL_INTERVAL_S)
        if not task.done() or task.cancelled():
            return False
        task.result()
        return True

    async def interrupt(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` unless the server is to stop: then it is cancelled, and the result is None."""
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await self.finish(task, 0.0)
            return None
        finally:
            stopping.cancel()
            task.cancel()
