"""Rings where a wave has become due on this server, so that its loop need not look all the time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict


class Bell:
    """One event a zone."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def ring(self, zone: str) -> None:
        """A trip of the zone waits for a driver."""
        self._events[zone].set()

    async def wait(self, zone: str, timeout_s: float) -> None:
        """Returns when it rings, or after the timeout."""
        event = self._events[zone]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)
        event.clear()
