"""Where drivers work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, NamedTuple

from dispatcher.core.drivers import Driver
from dispatcher.ledger.database import Database

#: This many drivers are remembered in a process; a miss asks Postgres.
_MAX_DRIVERS: Final = 200_000


class DirectoryEntry(NamedTuple):
    """The zone that a driver works in, with which vehicle, and the version of the row that says so."""

    zone: str
    vehicle_type: str
    version: int

    @classmethod
    def of(cls, driver: Driver) -> DirectoryEntry:
        """What Postgres says of a driver."""
        return cls(driver.zone, driver.vehicle_type, driver.version)


class DriverDirectory:
    """A cache of what changes about once a day: each driver's zone and vehicle type.

    Postgres' row is the truth. An entry carries the row's version and never replaces a newer one.
    """

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
            entry = self.learn(driver_id, DirectoryEntry.of(driver))
        return entry

    async def find_all(self, driver_ids: Collection[str]) -> dict[str, DirectoryEntry]:
        """Where these drivers work, by id, if they were ever online. Raises StoreUnavailable."""
        found = {each: self._entries[each] for each in driver_ids if each in self._entries}
        return found | await self.refresh([each for each in driver_ids if each not in found])

    async def refresh(self, driver_ids: Collection[str]) -> dict[str, DirectoryEntry]:
        """As `find_all`, but Postgres is asked whatever is remembered. Raises StoreUnavailable."""
        if not driver_ids:
            return {}
        rows = await self._database.rows("places_of_drivers", driver_ids=list(driver_ids))
        return {
            row["user_id"]: self.learn(
                row["user_id"], DirectoryEntry(row["zone"], row["vehicle_type"], row["version"])
            )
            for row in rows
        }

    def learn(self, driver_id: str, entry: DirectoryEntry) -> DirectoryEntry:
        """Remembers where a driver works, unless a newer entry is known; returns the one that holds."""
        known = self._entries.get(driver_id)
        if known is not None and known.version > entry.version:
            return known
        self._entries[driver_id] = entry
        if len(self._entries) > _MAX_DRIVERS:
            self._entries.popitem(last=False)
        return entry

    def forget(self, driver_id: str) -> None:
        """Drops what is remembered of a driver: it was found to be wrong."""
        self._entries.pop(driver_id, None)
