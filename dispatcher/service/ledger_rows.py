"""Rows that claims over Postgres look at: those of one moment share their questions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from dispatcher.core.drivers import Driver
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import millis
from dispatcher.core.trips import Trip
from dispatcher.ledger.database import Database, answer_from_row, driver_from_row, trip_from_row
from dispatcher.live.hashes import driver_from_hash

#: Ids in one question at most.
_MAX_IDS: Final = 500
#: Ids that wait at most: who comes then is refused at once.
_MAX_WAITING: Final = 20_000

KeyId = tuple[str, str, str]

Id = TypeVar("Id")
Row = TypeVar("Row")


class Looks(Generic[Id, Row]):
    """Gathers questions for one kind of row. Nothing waits on purpose: while one question is on its
    way, the next one fills."""

    def __init__(self, ask: Callable[[Sequence[Id]], Awaitable[dict[Id, Row]]]) -> None:
        self._ask = ask
        self._waiting: dict[Id, asyncio.Future[Row | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, id_: Id) -> Row | None:
        """The row as it is after this call began, or None. Raises StoreUnavailable."""
        if len(self._waiting) >= _MAX_WAITING:
            raise StoreUnavailable("too many questions wait for postgres")
        found = self._waiting.get(id_)
        if found is None:
            found = self._waiting[id_] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        # Others may wait for the same row: who is cancelled does not cancel it for them.
        return await asyncio.shield(found)

    async def _run(self) -> None:
        await asyncio.sleep(0)
        while self._waiting:
            ids = list(self._waiting)[:_MAX_IDS]
            asked = {id_: self._waiting.pop(id_) for id_ in ids}
            try:
                rows: dict[Id, Any] = await self._ask(ids)
            except Exception as error:
                for found in asked.values():
                    if not found.done():
                        found.set_exception(type(error)(*error.args))
                        found.exception()  # nobody may wait for it any more
            else:
                for id_, found in asked.items():
                    if not found.done():
                        found.set_result(rows.get(id_))


class LedgerRows:
    """The looks: trips, drivers with the time of their last fix (ms), who is offered a trip, answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.trips: Looks[str, Trip] = Looks(self._read_trips)
        self.drivers: Looks[str, tuple[Driver, int | None]] = Looks(self._read_drivers)
        self.offers: Looks[str, list[str]] = Looks(self._read_offers)
        self.answers: Looks[KeyId, StoredAnswer] = Looks(self._read_answers)

    async def driver_and_trip(self, driver_id: str, zone: str) -> tuple[Driver, int | None, Trip | None]:
        """A driver, one who was never online included, with their last fix and their trip."""
        driver, fix_ms = await self.drivers.find(driver_id) or (
            driver_from_hash(driver_id, zone, {}),
            None,
        )
        return driver, fix_ms, await self.trips.find(driver.trip_id) if driver.trip_id else None

    async def _read_trips(self, ids: Sequence[str]) -> dict[str, Trip]:
        rows = await self._database.rows("trips_by_id", ids=ids)
        return {row["id"]: trip_from_row(row) for row in rows}

    async def _read_drivers(self, ids: Sequence[str]) -> dict[str, tuple[Driver, int | None]]:
        rows = await self._database.rows("drivers_to_claim", ids=ids)
        return {
            row["user_id"]: (driver_from_row(row), millis(row["location_updated_at"])) for row in rows
        }

    async def _read_offers(self, ids: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in await self._database.rows("open_offers_of_trips", ids=ids):
            found.setdefault(row["trip_id"], []).append(row["driver_id"])
        return found

    async def _read_answers(self, ids: Sequence[KeyId]) -> dict[KeyId, StoredAnswer]:
        users, endpoints, keys = zip(*ids, strict=True)
        rows = await self._database.rows(
            "answers_of_keys", users=list(users), endpoints=list(endpoints), keys=list(keys)
        )
        return {
            (row["user_id"], row["endpoint"], row["idempotency_key"]): answer_from_row(row)
            for row in rows
        }


def key_id(key: IdempotencyKey) -> KeyId:
    """What a stored answer is found by."""
    return key.user_id, key.endpoint, key.key
