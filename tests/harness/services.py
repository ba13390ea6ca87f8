"""The services of a server on real engines, for tests of them: riders and drivers with a method each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson

from dispatcher.background import reconcile_job
from dispatcher.composition import Services, services
from dispatcher.config import load_settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.zones import Zones
from dispatcher.jobs.loop import FunctionJob
from dispatcher.live.deployment import open_pipeline
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.service.answers import Answer
from dispatcher.service.commands.actions import trip_action
from dispatcher.service.commands.create import create_trip
from dispatcher.web.problems import counted_answer
from tests.harness.least_privilege import RESTRICTED

PLACE = (40.7559, -73.9864)
#: A test that is slow does not take Redis for dead, unless it is about that.
_PATIENT = {"redis_timeout_s": 10.0}


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

    def __init__(self, parts: Services, postgres: asyncpg.Connection, look: Pipeline) -> None:
        self.parts = parts
        self.postgres = postgres
        self._look = look

    async def trip(self, *, customer: str = "rider", **more: Any) -> str:
        caller = Caller(rider(customer), more.pop("key", None), more.pop("ip", None))
        command = create_trip(
            self.parts.zones, caller, **{"pickup": PLACE, "vehicle_type": "car", **more}
        )
        answer = await self.parts.coordinator.execute(command)
        assert answer.status == 201, answer
        return str(orjson.loads(answer.body)["trip"]["id"])

    async def online(self, *names: str, **more: Any) -> None:
        answers = await asyncio.gather(*(self.available(name, is_online=True, **more) for name in names))
        assert [a.status for a in answers] == [200] * len(names), answers

    async def available(self, name: str, **more: Any) -> Answer:
        caller = Caller(driver(name), more.pop("key", None), more.pop("ip", None))
        return await self.parts.availability.change(caller, **more)

    async def act(
        self, actor: Actor, action: str, trip_id: str, text: str | None = None, **more: Any
    ) -> Answer:
        body = orjson.dumps([action, trip_id])
        caller = Caller(actor, key(actor, text, body) if text else None, more.pop("ip", None))
        try:
            command = trip_action(self.parts.zones, caller, action, trip_id, **more)
            return await self.parts.coordinator.execute(command)
        except Refusal as refusal:
            return await counted_answer(refusal, self.parts.limits, actor, caller.ip)

    async def row(self, trip_id: str) -> dict[str, Any]:
        row = await self.postgres.fetchrow("SELECT * FROM trip_requests WHERE id = $1", trip_id)
        assert row is not None
        return dict(row)

    async def hash(self, trip_id: str) -> dict[str, str]:
        return await self.parts.live.state.read_hash(self.keys(trip_id).trip(trip_id))

    def keys(self, trip_id: str = "default_x") -> Keys:
        return keys_of(trip_id.partition("_")[0])

    async def redis(self, *command: Any) -> Any:
        return await self._look.command(*command)

    def reconcile(self) -> FunctionJob:
        """The jobs that put right what a server left behind, of all zones."""
        jobs = [reconcile_job(self.parts, zone) for zone in self.parts.zones.names()]
        return FunctionJob("reconcile", 1, lambda: asyncio.gather(*(job.run() for job in jobs)))

    async def inspect(self, name: str, *keys: str) -> list[Any]:
        """What a script of `lua/inspect/` says without arguments, as to a plain redis-cli."""
        return list(await self._look.run(f"inspect/{name}", keys, ()))

    async def events(self) -> list[tuple[str, str, int]]:
        """What the stream has told: event, trip and version."""
        entries = await self.redis("XRANGE", self.keys().events, "-", "+")
        told = [orjson.loads(fields[1]) for _, fields in entries]
        return [(event["event"], event["trip"]["id"], event["trip"]["version"]) for event in told]

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
    """The services of a server, without its background jobs, and with limits out of the way."""
    wide = {
        f"limit_{name}": "100000/60" for name in ("trip_accept", "trip_cancel", "general", "operator")
    }
    urls = {
        "redis_url": RESTRICTED.redis_url(redis_url),
        "database_url": RESTRICTED.database_url(database_url),
    }
    settings = load_settings(**{**urls, **wide, **_PATIENT, **more})
    async with services(settings, zones or Zones()) as parts, _look(parts, redis_url) as look:
        postgres = await asyncpg.connect(database_url)
        try:
            yield City(parts, postgres, look)
        finally:
            await postgres.close()


@contextlib.asynccontextmanager
async def _look(parts: Services, redis_url: str) -> AsyncIterator[Pipeline]:
    """What looks into Redis for the tests: the product's own connection, where that has every right."""
    if parts.settings.redis_url == redis_url:
        yield parts.live.pipeline
        return
    async with open_pipeline(redis_url) as pipeline:
        yield pipeline
