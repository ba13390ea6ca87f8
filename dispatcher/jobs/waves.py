"""Runs the waves of offers that are due, in every zone."""

from __future__ import annotations

import asyncio

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.offers import Offers
from dispatcher.service.wave_wakeups import Bell

log = structlog.get_logger("dispatcher.waves")

#: Looked at least this often: another server may have made a wave due that we do not know of.
_LOOK_S = 0.2
_SOON_S = 0.005


class Waves:
    """One loop a zone. A trip created here is looked at at once: the bell wakes the loop."""

    def __init__(self, offers: Offers, zone: str, bell: Bell) -> None:
        self.name = f"waves-{zone}"
        self._offers = offers
        self._zone = zone
        self._bell = bell
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Lets the waves that are being run come to their end."""
        self._stopping = True
        self._bell.ring(self._zone)
        if self._task:
            await self._task

    async def _run(self) -> None:
        while not self._stopping:
            pause = _LOOK_S
            try:
                wait_ms = await self._offers.run_due(self._zone)
                if wait_ms is not None:
                    pause = min(_LOOK_S, max(_SOON_S, wait_ms / 1000))
            except StoreUnavailable as error:
                log.warning("waves are put off", zone=self._zone, reason=str(error))
                pause = 1.0
            except Exception:
                log.exception("waves failed", zone=self._zone)
                pause = 1.0
            await self._bell.wait(self._zone, pause)
