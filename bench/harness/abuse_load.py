"""Attackers at a bounded rate: connections that send the same bytes again and again, and come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import cycle
from typing import Any, Final

#: A burst every so often, instead of a message at a time, so that the attack costs its process little.
BURST_S: Final = 0.02
#: How soon a connection that was ended or refused comes back.
BACK_S: Final = 0.25


class _Attacker(asyncio.Protocol):
    """One connection, which takes no answer to heart."""

    def __init__(self, load: AbuseLoad) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.load.counts["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.load.counts["ended"] += 1


class AbuseLoad:
    """Runs in a load process of its own: `run`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    async def run(
        self,
        seconds: float,
        target: tuple[str, int],
        sources: list[str],
        opening: bytes,
        message: bytes,
        connections: int,
        rate: float,
    ) -> dict[str, int]:
        """Attacks for so long; each connection sends `opening`, then `rate` messages a second."""
        self.counts = Counter()
        burst = message * max(1, round(rate * BURST_S))
        addresses = cycle(sources)
        tasks = [
            asyncio.create_task(self._attack(target, next(addresses), opening, burst))
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return dict(self.counts)

    async def _attack(self, target: tuple[str, int], source: str, opening: bytes, burst: bytes) -> None:
        loop = asyncio.get_running_loop()
        attacker: Any = None
        try:
            while True:
                try:
                    _, attacker = await loop.create_connection(
                        lambda: _Attacker(self), *target, local_addr=(source, 0)
                    )
                except OSError:
                    self.counts["not connected"] += 1
                else:
                    if opening:
                        attacker.transport.write(opening)
                    await self._send(attacker, burst)
                await asyncio.sleep(BACK_S)
        finally:
            if attacker is not None and attacker.transport is not None:
                attacker.transport.abort()

    async def _send(self, attacker: _Attacker, burst: bytes) -> None:
        while (transport := attacker.transport) is not None and not transport.is_closing():
            # What the server does not take is not piled up here.
            if transport.get_write_buffer_size() < len(burst):
                transport.write(burst)
                self.counts["bursts"] += 1
            await asyncio.sleep(BURST_S)
