"""A small world for tests of the services: real engines, riders and drivers with a line each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson

from dispatcher.app import Services, services
from dispatcher.config import load_settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.zones import Zones
from dispatcher.service.answers import Answer

PLACE = (40.7559, -73.9864)


def driver(name: str) -> Actor:
    return Actor(name, Role.DRIVER)


def rider(name: str) -> Actor:
    return Actor(name, Role.CUSTOMER)


def key(actor: Actor, text: str, body: bytes = b"{}", endpoint: str = "/act") -> IdempotencyKey:
    return IdempotencyKey(actor.user_id, endpoint, text, hashlib.sha256(body).hexdigest(), body)


def code_of(answer: Answer) -> str:
    return str(orjson.loads(answer.body)["response_code"])


class City:
    """One server's services and a connection of the test's own to Postgres."""

    def __init__(self, parts: Services, postgres: asyncpg.Connection) -> None:
        self.parts = parts
        self.postgres = postgres

    async def trip(self, *, customer: str = "rider", **more: Any) -> str:
        answer = await self.parts.trips.create(
            rider(customer),
            **{
                "pickup": PLACE, "dropoff": None, "vehicle_type": "car", "zone": None,
                "trip_request_id": None, "key": None, "ip": None, **more,
            },
        )  # fmt: skip
        assert answer.status == 201, answer
        return str(orjson.loads(answer.body)["trip"]["id"])

    async def online(self, *names: str, **more: Any) -> None:
        answers = await asyncio.gather(*(self.available(name, is_online=True, **more) for name in names))
        assert [a.status for a in answers] == [200] * len(names), answers

    async def available(self, name: str, **more: Any) -> Answer:
        return await self.parts.drivers.set_availability(
            driver(name),
            **{
                "availability_status": None, "is_online": None, "zone": None, "vehicle_type": None,
                "location": None, "key": None, "ip": None, **more,
            },
        )  # fmt: skip

    async def act(
        self, actor: Actor, action: str, trip_id: str, text: str | None = None, **more: Any
    ) -> Answer:
        wanted = {"version": None, "ip": None, **more}
        body = orjson.dumps([action, trip_id])
        return await self.parts.trips.act(
            actor, action, trip_id, key=key(actor, text, body) if text else None, **wanted
        )

    async def row(self, trip_id: str) -> dict[str, Any]:
        row = await self.postgres.fetchrow("SELECT * FROM trip_requests WHERE id = $1", trip_id)
        assert row is not None
        return dict(row)

    async def hash(self, trip_id: str) -> dict[str, str]:
        keys = self.keys(trip_id)
        flat = await self.parts.scripts.read_trip(keys, trip_id)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def keys(self, trip_id: str = "default_x") -> Any:
        from dispatcher.live.keys import keys_of

        return keys_of(trip_id.partition("_")[0])

    async def redis(self, *command: Any) -> Any:
        return await self.parts.pipeline.command(*command)

    async def double_assignments(self) -> int:
        """Drivers with two active trips, and versions of trips that are missing or doubled."""
        return int(
            await self.postgres.fetchval(
                """
                SELECT (SELECT count(*) FROM (SELECT driver_id FROM trip_requests
                          WHERE current_status IN ('accepted', 'arrived', 'ongoing')
                          GROUP BY driver_id HAVING count(*) > 1) d)
                     + (SELECT count(*) FROM trip_requests t
                          WHERE t.version + 1 <> (SELECT count(*) FROM trip_events e
                                                   WHERE e.trip_id = t.id))
                """
            )
        )


@contextlib.asynccontextmanager
async def open_city(
    redis_url: str, database_url: str, *, zones: Zones | None = None, **more: Any
) -> AsyncIterator[City]:
    """The services of a server, without its workers, and with limits out of the way."""
    wide = {f"limit_{name}": "100000/60" for name in ("trip_accept", "trip_cancel", "general")}
    settings = load_settings(redis_url=redis_url, database_url=database_url, **{**wide, **more})
    async with services(settings, zones or Zones()) as parts:
        postgres = await asyncpg.connect(database_url)
        try:
            yield City(parts, postgres)
        finally:
            await postgres.close()
