"""Where drivers work."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from dispatcher.ledger.database import Database

#: This many drivers are remembered in a process; a miss asks Postgres.
_MAX_DRIVERS: Final = 200_000


class DirectoryEntry(NamedTuple):
    """The zone that a driver works in, and with which vehicle."""

    zone: str
    vehicle_type: str


class DriverDirectory:
    """A cache of what changes about once a day: each driver's zone and vehicle type."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: OrderedDict[str, DirectoryEntry] = OrderedDict()

    async def find(self, driver_id: str) -> DirectoryEntry | None:
        """Where a driver works, or None for one who was never online. Raises StoreUnavailable."""
        entry = self._entries.get(driver_id)
        if entry is None:
            driver = await self._database.driver(driver_id)
            if driver is None:
                return None
            entry = self.learn(driver_id, driver.zone, driver.vehicle_type)
        return entry

    def learn(self, driver_id: str, zone: str, vehicle_type: str) -> DirectoryEntry:
        """Remembers where a driver works."""
        entry = self._entries[driver_id] = DirectoryEntry(zone, vehicle_type)
        if len(self._entries) > _MAX_DRIVERS:
            self._entries.popitem(last=False)
        return entry

    def forget(self, driver_id: str) -> None:
        """Drops what is remembered of a driver: it was found to be wrong."""
        self._entries.pop(driver_id, None)
