"""The live picture: loaded from Postgres where a zone is cold, reloaded where it proved stale."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.times import millis
from dispatcher.core.trips import Trip
from dispatcher.ledger.commits import Outcome
from dispatcher.ledger.database import Database, driver_from_row, trip_from_row
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.scripts import Scripts

log = structlog.get_logger("dispatcher.picture")

_PAGE: Final = 1_000
#: Newest answers that are loaded with a zone; a key older than these asks Postgres until it expires.
_ANSWERS: Final = 50_000
_LOADING_MS: Final = 30_000
_WAIT_S: Final = 10.0


def done_record(fingerprint: str, status: int, body: str) -> str:
    """The idempotency record of an answer that Postgres keeps (lua/lib/idempotency.lua)."""
    return f"D {fingerprint} {status} {body}"


class Picture:
    """Brings Redis up to what Postgres knows."""

    def __init__(
        self, pipeline: Pipeline, scripts: Scripts, database: Database, *, lease_ms: int
    ) -> None:
        self._pipeline = pipeline
        self._scripts = scripts
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
        epoch = await self._pipeline.command("GET", keys.epoch)
        if epoch is not None and epoch.split(" ")[2] == await self._pipeline.run_id(keys.epoch):
            return False
        log.info("zone is loaded", zone=zone, reason="cold" if epoch is None else "another redis")
        await self.warm(zone) if epoch is None else await self._load(keys)
        return True

    async def _warm(self, keys: Keys) -> None:
        token = secrets.token_hex(8)
        give_up = time.monotonic() + _WAIT_S
        while not await self._pipeline.command("EXISTS", keys.epoch):
            if await self._pipeline.command("SET", keys.loading, token, "NX", "PX", _LOADING_MS):
                try:
                    await self._load(keys)
                finally:
                    await self._pipeline.command("DEL", keys.loading)
                return
            if time.monotonic() > give_up:
                raise StoreUnavailable(f"zone {keys.zone} is being loaded")
            await asyncio.sleep(0.02)

    async def _load(self, keys: Keys) -> None:
        started = time.monotonic()
        run_id = await self._pipeline.run_id(keys.epoch)
        trips = drivers = 0
        # Drivers first: an accept that finds its trip must find its driver.
        async for page in self._pages("online_drivers_of_zone", "user_id", keys.zone):
            await asyncio.gather(
                *(self._scripts.load_driver(keys, driver_from_row(row), **_fix(row)) for row in page)
            )
            drivers += len(page)
        async for page in self._pages("live_trips_of_zone", "id", keys.zone):
            await asyncio.gather(*(self._scripts.load_trip(keys, trip_from_row(row)) for row in page))
            trips += len(page)
        answers = await self._database.rows("live_answers_of_zone", zone=keys.zone, most=_ANSWERS)
        now_ms = time.time_ns() // 1_000_000
        for start in range(0, len(answers), _PAGE):
            await asyncio.gather(
                *(
                    self._keep(keys.idem(row["user_id"], row["endpoint"], row["idempotency_key"]), row)
                    for row in answers[start : start + _PAGE]
                )
            )
        horizon_ms = 0
        if len(answers) == _ANSWERS:
            horizon_ms = millis(answers[-1]["expires_at"]) or 0
        elif trips or answers:
            # A commit that was under way while we read has its row within its lease.
            horizon_ms = now_ms + self._lease_ms
        await self._pipeline.command("SET", keys.epoch, f"{now_ms} {horizon_ms} {run_id}")
        log.info(
            "zone loaded", zone=keys.zone, trips=trips, drivers=drivers, answers=len(answers),
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip

    async def _pages(self, query: str, column: str, zone: str) -> AsyncIterator[list[Any]]:
        after = ""
        while page := await self._database.rows(query, zone=zone, after=after, page=_PAGE):
            yield page
            after = page[-1][column]

    async def _keep(self, record: str, row: Any) -> None:
        """Keeps a stored answer under `record` for what is left of its life."""
        left_ms = (millis(row["expires_at"]) or 0) - time.time_ns() // 1_000_000
        if left_ms > 0:
            await self._pipeline.command(
                "SET",
                record,
                done_record(row["request_fingerprint"], row["status_code"], row["response_payload"]),
                "PX",
                left_ms,
            )

    async def load_trip(self, keys: Keys, trip_id: str) -> Trip | None:
        """Reads a trip from Postgres into the picture, with its bond to its driver."""
        trip = await self._database.trip(trip_id)
        if trip is not None:
            former = await self._pipeline.command("HGET", keys.trip(trip_id), "driver_id")
            await self._scripts.load_trip(keys, trip, former_driver=former or None)
        return trip

    async def load_driver(self, keys: Keys, driver_id: str) -> bool:
        """Reads a driver, and their active trip, from Postgres into the picture of `keys`' zone.

        Says whether there is such a driver; one who works in another zone is offline in this one.
        """
        driver = await self._database.driver(driver_id)
        if driver is None:
            return False
        if driver.zone == keys.zone and driver.trip_id is not None:
            await self.load_trip(keys, driver.trip_id)
        await self._scripts.load_driver(keys, driver)
        return True

    async def answer_of(self, keys: Keys, key: IdempotencyKey) -> Outcome | None:
        """The stored answer of a key, from Postgres, kept in Redis from now on."""
        row = await self._database.row(
            "get_answer", user_id=key.user_id, endpoint=key.endpoint, key=key.key
        )
        if row is None:
            return None
        await self._keep(keys.idem(key.user_id, key.endpoint, key.key), row)
        return Outcome("replay", row["status_code"], row["response_payload"], row["request_fingerprint"])


def _fix(row: Any) -> dict[str, Any]:
    if row["lat"] is None or row["location_updated_at"] is None:
        return {}
    return {"fix": (row["lat"], row["lng"], millis(row["location_updated_at"]))}
