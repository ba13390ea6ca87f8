"""Drivers as Redis has them, in the zone where they work; as Postgres has them while that is away."""

from __future__ import annotations

from typing import Final

from dispatcher.core.drivers import Driver
from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.database import Database
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.state import StateScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.rehydration import Rehydration

#: How often a driver is looked up who moves from zone to zone meanwhile.
_MAX_TRIES: Final = 3


class LiveDrivers:
    """Reads the live state of drivers. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        state: StateScripts,
        rehydration: Rehydration,
        directory: DriverDirectory,
        database: Database,
        authorities: Authorities,
    ) -> None:
        self._database = database
        self._authorities = authorities
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
            if self._authorities.of(entry.zone).is_degraded:
                return await self._database.driver(driver_id)
            try:
                driver = await self._read(keys, driver_id)
            except StoreUnavailable:
                if not await self._authorities.has_left_redis(entry.zone):
                    raise
                continue
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
