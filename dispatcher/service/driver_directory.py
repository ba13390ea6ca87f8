"""Where drivers work."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from dispatcher.ledger.database import Database

#: This many drivers are remembered in a process; a miss asks Postgres.
_HOMES: Final = 200_000


class Homes:
    """Which zone and vehicle type a driver works in: a cache of what changes once a day."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def of(self, driver_id: str) -> tuple[str, str] | None:
        """(zone, vehicle type), or None for a driver who was never online."""
        home = self._known.get(driver_id)
        if home is None:
            driver = await self._database.driver(driver_id)
            if driver is None:
                return None
            home = (driver.zone, driver.vehicle_type)
            self.learn(driver_id, *home)
        return home

    def learn(self, driver_id: str, zone: str, vehicle_type: str) -> None:
        """Remembers where a driver works."""
        self._known[driver_id] = (zone, vehicle_type)
        if len(self._known) > _HOMES:
            self._known.popitem(last=False)

    def forget(self, driver_id: str) -> None:
        """Drops what is remembered of a driver: it was found to be wrong."""
        self._known.pop(driver_id, None)
