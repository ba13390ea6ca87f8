"""Drivers as Redis has them, in the zone where they work."""

from __future__ import annotations

from typing import Final

from dispatcher.core.drivers import Driver
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.state import StateScripts
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.rehydration import Rehydration

#: How often a driver is looked up who moves from zone to zone meanwhile.
_MAX_TRIES: Final = 3


class LiveDrivers:
    """Reads the live state of drivers. All raise StoreUnavailable."""

    def __init__(
        self, *, state: StateScripts, rehydration: Rehydration, directory: DriverDirectory
    ) -> None:
        self._state = state
        self._rehydration = rehydration
        self._directory = directory

    async def find(self, driver_id: str) -> Driver | None:
        """A driver in the zone where they work, loaded from Postgres where Redis lacks them.

        None for one who was never online.
        """
        for _ in range(_MAX_TRIES):
            entry = await self._directory.find(driver_id)
            if entry is None:
                return None
            keys = keys_of(entry.zone)
            driver = await self._read(keys, driver_id)
            if driver is None or driver.zone == entry.zone:
                return driver
            # They have moved by way of another server, or this zone has not heard of their return.
            await self._rehydration.reload_driver(keys, driver_id)
            self._directory.forget(driver_id)
        return None

    async def reload(self, driver_id: str, zone: str) -> Driver | None:
        """The driver once the zone was brought up to what Postgres knows of them."""
        await self._rehydration.reload_driver(keys_of(zone), driver_id)
        return await self.find(driver_id)

    async def _read(self, keys: Keys, driver_id: str) -> Driver | None:
        driver = await self._state.read_driver(keys, driver_id)
        if driver is None:
            await self._rehydration.warm(keys.zone)
            await self._rehydration.reload_driver(keys, driver_id)
            driver = await self._state.read_driver(keys, driver_id)
        return driver
