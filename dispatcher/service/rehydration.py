"""Rehydration: the live state of a zone is loaded from Postgres where it is cold, and reloaded where
it proved stale."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import millis, now_ms
from dispatcher.core.trips import Trip
from dispatcher.ledger.database import (
    Database,
    answer_from_row,
    driver_from_row,
    trip_from_row,
)
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.state import Epoch, Fix, StateScripts

log = structlog.get_logger("dispatcher.rehydration")

_PAGE_ROWS: Final = 1_000
#: Newest answers that are loaded with a zone; a key older than these asks Postgres until it expires.
_MAX_ANSWERS: Final = 50_000
#: How long a request waits for another server that loads its zone, and how often it looks.
_MAX_WAIT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.02


class Rehydration:
    """Brings Redis up to what Postgres knows. All raise StoreUnavailable."""

    def __init__(self, state: StateScripts, database: Database, *, lease_ms: int) -> None:
        self._state = state
        self._database = database
        self._lease_ms = lease_ms
        self._warming: dict[str, asyncio.Task[None]] = {}

    async def warm(self, zone: str) -> None:
        """Loads a cold zone, or waits for the server that is loading it."""
        task = self._warming.get(zone)
        if task is None:
            task = asyncio.create_task(self._warm(keys_of(zone)))
            self._warming[zone] = task
            task.add_done_callback(lambda _: self._warming.pop(zone, None))
        await asyncio.shield(task)

    async def check_epoch(self, zone: str) -> bool:
        """Loads the zone again where Redis is empty or is another server than it was loaded into.

        A restarted or promoted server may lack the last writes. Says whether the zone was loaded.
        """
        keys = keys_of(zone)
        epoch = await self._state.read_epoch(keys)
        if epoch is not None and epoch.run_id == await self._state.run_id(keys):
            return False
        log.info("zone is loaded", zone=zone, reason="cold" if epoch is None else "another redis")
        await self.warm(zone) if epoch is None else await self._load(keys)
        return True

    async def _warm(self, keys: Keys) -> None:
        token = secrets.token_hex(8)
        give_up = time.monotonic() + _MAX_WAIT_S
        while await self._state.read_epoch(keys) is None:
            if await self._state.begin_loading(keys, token):
                try:
                    await self._load(keys)
                finally:
                    await self._state.end_loading(keys)
                return
            if time.monotonic() > give_up:
                raise StoreUnavailable(f"zone {keys.zone} is being loaded")
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _load(self, keys: Keys) -> None:
        started = time.monotonic()
        run_id = await self._state.run_id(keys)
        # Drivers first: an accept that finds its trip must find its driver.
        drivers = await self._load_drivers(keys)
        trips = await self._load_trips(keys)
        answers, oldest_ms = await self._load_answers(keys)
        loaded_ms = now_ms()
        horizon_ms = 0
        if answers == _MAX_ANSWERS:
            horizon_ms = oldest_ms
        elif trips or answers:
            # A commit that was under way while we read has its row within its lease.
            horizon_ms = loaded_ms + self._lease_ms
        await self._state.write_epoch(keys, Epoch(loaded_ms, horizon_ms, run_id))
        log.info(
            "zone loaded", zone=keys.zone, trips=trips, drivers=drivers, answers=answers,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip

    async def _load_drivers(self, keys: Keys) -> int:
        count = 0
        async for page in self._pages("online_drivers_of_zone", "user_id", keys.zone):
            await asyncio.gather(
                *(self._state.load_driver(keys, driver_from_row(row), fix=_fix(row)) for row in page)
            )
            count += len(page)
        return count

    async def _load_trips(self, keys: Keys) -> int:
        count = 0
        async for page in self._pages("live_trips_of_zone", "id", keys.zone):
            await asyncio.gather(*(self._state.load_trip(keys, trip_from_row(row)) for row in page))
            count += len(page)
        return count

    async def _load_answers(self, keys: Keys) -> tuple[int, int]:
        """Loads the newest answers; how many, and when (ms) the oldest of them expires."""
        rows = await self._database.rows("live_answers_of_zone", zone=keys.zone, max_rows=_MAX_ANSWERS)
        for start in range(0, len(rows), _PAGE_ROWS):
            await asyncio.gather(
                *(
                    self._state.keep_answer(keys, _key(row), answer_from_row(row))
                    for row in rows[start : start + _PAGE_ROWS]
                )
            )
        return len(rows), answer_from_row(rows[-1]).expires_at_ms if rows else 0

    async def _pages(self, query: str, column: str, zone: str) -> AsyncIterator[list[Any]]:
        after = ""
        while page := await self._database.rows(query, zone=zone, after=after, page_size=_PAGE_ROWS):
            yield page
            after = page[-1][column]

    async def reload(self, keys: Keys, trip_id: str, driver_id: str) -> None:
        """Reads trip and driver, as far as they are named, from Postgres into the live state."""
        if trip_id:
            await self.reload_trip(keys, trip_id)
        if driver_id:
            await self.reload_driver(keys, driver_id)

    async def reload_trip(self, keys: Keys, trip_id: str) -> Trip | None:
        """Reads a trip from Postgres into the live state, with its bond to its driver."""
        trip = await self._database.trip(trip_id)
        if trip is not None:
            former = await self._state.driver_of(keys, trip_id)
            await self._state.load_trip(keys, trip, former_driver=former)
        return trip

    async def reload_driver(self, keys: Keys, driver_id: str) -> bool:
        """Reads a driver, and their active trip, from Postgres into the live state of `keys`' zone.

        Says whether there is such a driver; one who works in another zone is offline in this one.
        """
        driver = await self._database.driver(driver_id)
        if driver is None:
            return False
        if driver.zone == keys.zone and driver.trip_id is not None:
            await self.reload_trip(keys, driver.trip_id)
        await self._state.load_driver(keys, driver)
        return True

    async def reload_answer(self, keys: Keys, key: IdempotencyKey) -> StoredAnswer | None:
        """The stored answer of a key, from Postgres, kept in Redis from now on."""
        answer = await self._database.stored_answer(key)
        if answer is not None:
            await self._state.keep_answer(keys, key, answer)
        return answer


def _key(row: Any) -> IdempotencyKey:
    return IdempotencyKey(
        row["user_id"], row["endpoint"], row["idempotency_key"], row["request_fingerprint"]
    )


def _fix(row: Any) -> Fix | None:
    if row["lat"] is None or row["location_updated_at"] is None:
        return None
    return Fix(row["lat"], row["lng"], millis(row["location_updated_at"]) or 0)
