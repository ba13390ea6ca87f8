"""Takes drivers offline who have been gone for longer than the grace period."""

from __future__ import annotations

import structlog

from dispatcher.core.zones import Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts
from dispatcher.service.drivers import Drivers

log = structlog.get_logger("dispatcher.absence")


class Absence:
    """Any server may do it; an absent user is handed to one of them at a time."""

    def __init__(self, *, zones: Zones, scripts: Scripts, drivers: Drivers, grace_s: float) -> None:
        self._zones = zones
        self._scripts = scripts
        self._drivers = drivers
        self._grace_ms = int(grace_s * 1000)

    async def __call__(self) -> None:
        for zone in self._zones.names():
            keys = keys_of(zone)
            for address in await self._scripts.sweep_absent(keys, grace_ms=self._grace_ms):
                role, _, user_id = address.partition(":")
                if role == "driver" and await self._drivers.is_online(zone, user_id):
                    await self._drivers.go_offline(zone, user_id)
                    log.info("driver lost", zone=zone, driver_id=user_id)
                await self._scripts.forget_absent(keys, address)
