"""Rows that claims over Postgres look at: all that claims of one moment need comes with one question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from dispatcher.core.drivers import Driver
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import millis
from dispatcher.core.trips import Trip
from dispatcher.ledger.database import Database, answer_from_row, driver_from_row, trip_from_row
from dispatcher.live.hashes import driver_from_hash
from dispatcher.service.questions import Questions

KeyId = tuple[str, str, str]


class Wanted(NamedTuple):
    """What one claim looks at. A driver named with a trip is after it: one that is not pending is all
    there is to see. With `driver_trip` it is the driver's active trip that is looked at."""

    trip_id: str = ""
    driver_id: str = ""
    key: KeyId | None = None
    offers: bool = False
    driver_trip: bool = False


class Found(NamedTuple):
    """What there is of it, and when, by Postgres' clock (ms): the driver with the time of their last fix
    (ms), who is offered the trip."""

    now_ms: int
    trip: Trip | None = None
    driver: Driver | None = None
    fix_ms: int | None = None
    offered: Sequence[str] = ()
    answer: StoredAnswer | None = None


class LedgerRows:
    """The looks. All raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looks: Questions[Wanted, Found] = Questions(self._read)

    async def look(self, wanted: Wanted) -> Found:
        """What is wanted, as it is at one moment after this call began."""
        found = await self._looks.find(wanted)
        assert found is not None  # there is something to say of each
        return found

    async def _read(self, looks: Sequence[Wanted]) -> dict[Wanted, Found]:
        keys = {look.key: None for look in looks if look.key is not None}
        pairs = {(look.driver_id, look.trip_id or None): None for look in looks if look.driver_id}
        drivers: dict[str, tuple[Driver, int | None]] = {}
        trips: dict[str, Trip] = {}
        offered: dict[str, list[str]] = defaultdict(list)
        answers: dict[KeyId, StoredAnswer] = {}
        now = 0
        for row in await self._database.rows(
            "rows_to_claim",
            trips=list({look.trip_id: None for look in looks if look.trip_id}),
            offered=list({look.trip_id: None for look in looks if look.offers}),
            drivers=[driver_id for driver_id, _ in pairs],
            rivals=[trip_id for _, trip_id in pairs],
            owners=list({look.driver_id: None for look in looks if look.driver_trip}),
            users=[user for user, _, _ in keys],
            endpoints=[endpoint for _, endpoint, _ in keys],
            keys=[key for _, _, key in keys],
        ):
            kind = row["kind"]
            if kind == "trip":
                trips[row["id"]] = trip_from_row(row)
            elif kind == "driver":
                drivers[row["user_id"]] = driver_from_row(row), millis(row["location_updated_at"])
            elif kind == "offer":
                offered[row["trip_id"]].append(row["driver_id"])
            elif kind == "clock":
                now = millis(row["updated_at"]) or 0
            else:
                answers[row["user_id"], row["endpoint"], row["idempotency_key"]] = answer_from_row(row)

        def found(look: Wanted) -> Found:
            driver, fix_ms = drivers.get(look.driver_id, (None, None))
            trip_id = look.trip_id
            if look.driver_trip:
                trip_id = (driver and driver.trip_id) or ""
            answer = None if look.key is None else answers.get(look.key)
            return Found(now, trips.get(trip_id), driver, fix_ms, offered.get(look.trip_id, ()), answer)

        return {look: found(look) for look in looks}


def unknown_driver(driver_id: str, zone: str) -> Driver:
    """A driver who was never online, in the zone that asks."""
    return driver_from_hash(driver_id, zone, {})


def key_id(key: IdempotencyKey) -> KeyId:
    """What a stored answer is found by."""
    return key.user_id, key.endpoint, key.key
