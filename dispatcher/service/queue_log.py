"""Places in queues, gathered for Postgres: a Redis that comes back empty gives nobody's place away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import millis, moment
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database
from dispatcher.live.queues import SavedPlace

#: Places that are remembered as saved; past these some are saved once more, which changes nothing.
_MAX_SAVED: Final = 10_000


class _Standing(NamedTuple):
    """The queue of a driver (None: none any more) and since when, in ms."""

    queue: str | None
    since_ms: int


class QueueLog:
    """What this server saw of drivers' places, and Postgres has not. The newest of a driver wins."""

    def __init__(self, zones: Zones, database: Database) -> None:
        self._zones = zones
        self._database = database
        self._unsaved: dict[str, _Standing] = {}
        self._saved: dict[str, _Standing] = {}

    def stands(self, driver_id: str, queue: str, queued_ms: int) -> None:
        """The driver holds a place since then."""
        standing = _Standing(queue, queued_ms)
        if self._saved.get(driver_id) != standing:
            self._unsaved[driver_id] = standing

    def left(self, drivers: Iterable[str], at_ms: int) -> None:
        """These drivers hold no place any more."""
        self._unsaved |= {driver_id: _Standing(None, at_ms) for driver_id in drivers}

    def place(self, zone_name: str, row: Any) -> SavedPlace | None:
        """The place that a driver's row tells of, where the zone has that queue."""
        zone = self._zones.get(zone_name)
        queue = zone.queue(row["queue"]) if zone is not None and row is not None else None
        if queue is None:
            return None
        return SavedPlace(queue.name, millis(row["queued_at"]) or 0, queue.absence_ms)

    async def saved_place(self, zone_name: str, driver_id: str) -> SavedPlace | None:
        """The place that Postgres knows of a driver. Raises StoreUnavailable."""
        zone = self._zones.get(zone_name)
        if zone is None or not zone.queues:
            return None
        row = await self._database.row("queue_place", driver_id=driver_id)
        return self.place(zone_name, row)

    async def save(self) -> int:
        """Writes what has come together in one statement; returns how many rows changed.

        What Postgres could not take is kept for the next time, unless something newer came. Raises
        StoreUnavailable.
        """
        if not self._unsaved:
            return 0
        unsaved, self._unsaved = self._unsaved, {}
        names = sorted(unsaved)  # one order for all: no deadlock
        try:
            changed = await self._database.execute(
                "save_queue_places",
                ids=names,
                queues=[unsaved[name].queue for name in names],
                ats=[moment(unsaved[name].since_ms) for name in names],
            )
        except StoreUnavailable:
            self._unsaved = unsaved | self._unsaved
            raise
        if len(self._saved) + len(unsaved) > _MAX_SAVED:
            self._saved.clear()
        self._saved |= unsaved
        return changed
