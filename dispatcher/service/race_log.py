"""Drivers who came too late to accept a trip, gathered for Postgres."""

from __future__ import annotations

from typing import Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import moment
from dispatcher.ledger.database import Database

#: Of a crowd, the first ones are enough.
_DRIVERS_OF_A_TRIP: Final = 100
#: While Postgres is away, no more than this is kept.
_MAX_TRIPS: Final = 1_000

#: By trip: who, for which version, and when.
_Races = dict[str, dict[tuple[str, int], int]]


class RaceLog:
    """Rows of `trip_races` that Postgres has not seen. The loser waits for none of this; a server that
    dies takes what it has not saved with it.

    A race waits for one more round, so that the accept that won it is committed before.
    """

    def __init__(self) -> None:
        self._new: _Races = {}
        self._due: _Races = {}

    def add(self, trip_id: str, driver_id: str, at_ms: int, version: int) -> None:
        """The driver tried to accept the trip, which was taken, at this time (ms since the epoch).
        `version` is the newest that the winner's accept may have. A second try is no second race."""
        racers = self._new.get(trip_id)
        if racers is None:
            if len(self._new) >= _MAX_TRIPS:
                return
            racers = self._new[trip_id] = {}
        if len(racers) < _DRIVERS_OF_A_TRIP:
            racers.setdefault((driver_id, version), at_ms)

    def unsaved(self) -> int:
        """How many rows wait for Postgres."""
        return sum(len(racers) for races in (self._new, self._due) for racers in races.values())

    async def save(self, database: Database) -> None:
        """Writes what has come together, in one statement. What Postgres could not take is kept for the
        next time. Raises StoreUnavailable."""
        due, self._due, self._new = self._due, self._new, {}
        if not due:
            return
        rows = [
            (trip_id, driver_id, version, at_ms)
            for trip_id, racers in due.items()
            for (driver_id, version), at_ms in racers.items()
        ]
        try:
            await database.execute(
                "save_races",
                trips=[row[0] for row in rows],
                drivers=[row[1] for row in rows],
                versions=[row[2] for row in rows],
                ats=[moment(row[3]) for row in rows],
                most=_DRIVERS_OF_A_TRIP,
            )
        except StoreUnavailable:
            for trip_id, racers in due.items():
                if trip_id in self._due or len(self._due) < _MAX_TRIPS:
                    self._due[trip_id] = {**self._due.get(trip_id, {}), **racers}
            raise
