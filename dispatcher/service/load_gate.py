"""How many zones are loaded at once: all of them together would keep everybody else from Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

#: Enough to keep the connections for reads busy.
_AT_ONCE: Final = 32


class LoadGate:
    """Zones that nobody waits for come in one after the other; one that a request waits for at once."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._at_once = at_once
        self._inside = 0
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._urgent: set[str] = set()

    def urge(self, zone: str) -> None:
        """A request waits for this zone."""
        self._urgent.add(zone)
        waiting = self._waiting.pop(zone, None)
        if waiting is not None:
            self._let_in(waiting)

    def forget(self, zone: str) -> None:
        """Nobody waits for this zone any more."""
        self._urgent.discard(zone)

    @contextlib.asynccontextmanager
    async def entered(self, zone: str) -> AsyncIterator[None]:
        """Waits until the zone may be loaded."""
        if zone in self._urgent or self._inside < self._at_once:
            self._inside += 1
        else:
            turn = self._waiting[zone] = asyncio.get_running_loop().create_future()
            try:
                await turn
            except asyncio.CancelledError:
                if self._waiting.pop(zone, None) is None:
                    self._leave()  # it was let in already
                raise
        try:
            yield
        finally:
            self._leave()

    def _let_in(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._inside += 1
            turn.set_result(None)

    def _leave(self) -> None:
        self._inside -= 1
        while self._waiting and self._inside < self._at_once:
            self._let_in(self._waiting.pop(next(iter(self._waiting))))
