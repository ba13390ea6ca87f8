"""Finds what a server left behind: overdue claims, cold zones, stale fixes."""

from __future__ import annotations

import structlog

from dispatcher.core.zones import Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts
from dispatcher.service.rehydration import Picture

log = structlog.get_logger("dispatcher.sweeper")


class Sweeper:
    """Looks after every zone. Any server may; a claim is handed to one of them at a time."""

    def __init__(self, *, zones: Zones, scripts: Scripts, picture: Picture, fix_age_s: int) -> None:
        self._zones = zones
        self._scripts = scripts
        self._picture = picture
        self._fix_age_ms = fix_age_s * 1000

    async def __call__(self) -> None:
        for zone in self._zones.names():
            await self._picture.check_epoch(zone)
            await self._sweep_claims(zone)
            await self._scripts.sweep_fixes(keys_of(zone), fix_age_ms=self._fix_age_ms)

    async def _sweep_claims(self, zone: str) -> None:
        keys = keys_of(zone)
        for entry in await self._scripts.sweep_claims(keys):
            token, trip_id, driver_id = entry.split(" ")
            # Postgres knows whether that attempt was committed; the picture follows it.
            if trip_id != "-":
                await self._picture.load_trip(keys, trip_id)
            if driver_id != "-":
                await self._picture.load_driver(keys, driver_id)
            await self._scripts.drop_claim(keys, entry)
            log.info("overdue claim swept", zone=zone, token=token, trip_id=trip_id)
