"""How late the event loop comes to what is due: what every call waits for when a process is busy."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from dispatcher.observe.series import LOOP_LAG_SECONDS

_INTERVAL_S: Final = 0.25


class LoopLag:
    """Measures until it is stopped. One for each event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to measure."""
        self._timer = self._loop.call_later(
            _INTERVAL_S, self._measure, time.perf_counter() + _INTERVAL_S
        )

    def stop(self) -> None:
        """Ends it."""
        if self._timer is not None:
            self._timer.cancel()

    def _measure(self, due_s: float) -> None:
        LOOP_LAG_SECONDS.observe(max(0.0, time.perf_counter() - due_s))
        self.start()
