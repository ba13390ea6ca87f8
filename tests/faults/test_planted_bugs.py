"""Bugs that are planted into the product itself: the checker sees each of them, and nothing without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from tests.faults.apps import Board, Driver, Rider, until
from tests.faults.checker import check
from tests.faults.client import Client
from tests.faults.evidence import Evidence, gather
from tests.faults.history import History
from tests.faults.limits import LIMITS
from tests.faults.plants import PLANTS, Plant
from tests.faults.stage import SETTINGS
from tests.harness.servers import Serve, Server

ZONE = "default"


class Scene:
    """One server and its apps, which do by script what a crowd does by chance."""

    def __init__(self, server: Server, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.history = History()
        self._http = http
        self._board = Board()

    def driver(self, name: str) -> Driver:
        return Driver(self._client(name, "driver"), self._board, ZONE)

    def rider(self, name: str) -> Rider:
        return Rider(self._client(name, "customer"), self._board)

    def _client(self, name: str, role: str) -> Client:
        return Client(self._http, [self.server.url], self.history, name, role, seed=1)

    async def play(self) -> None:
        """A race for a trip, which is given back and taken again; retries of what has succeeded; haste."""
        drivers = [self.driver(f"d{number}") for number in range(4)]
        rider = self.rider("rider")
        await asyncio.gather(*(driver.go_online() for driver in drivers))
        asked = await rider.ask(ZONE)
        trip = asked.answer["trip"]["id"]
        answers = await asyncio.gather(*(driver.act("accept", trip) for driver in drivers))
        places = [place for place, answer in enumerate(answers) if answer.is_success]
        winner, other = drivers[places[0]], drivers[places[0] - 1]
        await other.act("accept", trip)  # which is taken
        await winner.act("arrive", trip)
        await winner.act("complete", trip)  # which has not started
        await winner.act("cancel", trip)
        await other.act("accept", trip)
        await winner.act("accept", (await rider.ask(ZONE)).answer["trip"]["id"])
        await rider.client.intend(asked.endpoint, asked.body, key=asked.key, patience_s=3)
        most, _ = LIMITS["general"]
        hasty = self.rider("hasty")
        bodies = [{**asked.body, "trip_request_id": f"hasty-{n}"} for n in range(most + 3)]
        await asyncio.gather(
            *(hasty.client.intend(asked.endpoint, body, patience_s=0) for body in bodies)
        )
        self.last = (other, trip)

    async def look(self, within_s: float) -> set[str]:
        """The checks that find something for as long as this; live trips are none of it."""
        found: set[str] = set()

        async def is_well() -> bool:
            nonlocal found
            breaches = check(await self.evidence())
            found = {breach.partition(":")[0] for breach in breaches} - {"nothing_is_stuck"}
            return not found

        await until(is_well, within_s)
        return found

    async def evidence(self) -> Evidence:
        client = redis.asyncio.Redis.from_url(self.server.redis_url, decode_responses=True)
        try:
            return await gather(self.history, self.server.database_url, client, [ZONE])
        finally:
            await client.aclose()


@asynccontextmanager
async def played(serve: Serve, directory: Path | None) -> AsyncIterator[Scene]:
    """The scene after it was played, on the product as it is or on a copy with a bug."""
    env: dict[str, str | None] = {f"DISPATCHER_{name}": value for name, value in SETTINGS.items()}
    if directory is not None:
        env["PYTHONPATH"] = str(directory)
    server = await serve(env=env)
    async with aiohttp.ClientSession() as http:
        scene = Scene(server, http)
        await scene.play()
        yield scene


async def test_nothing_is_seen_where_nothing_is_planted(serve: Serve) -> None:
    async with played(serve, None) as scene:
        assert await scene.look(within_s=15) == set()
        assert any(attempt.status == 429 for attempt in scene.history.attempts)
        driver, trip = scene.last
        assert (await driver.act("arrive", trip)).is_success
        scene.server.kill9()
        assert await scene.look(within_s=0) <= {"redis_equals_postgres", "every_event_is_heard"}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name.replace(" ", "-"))
async def test_a_planted_bug_is_seen(
    serve: Serve, database_url: str, tmp_path: Path, plant: Plant
) -> None:
    copy = tmp_path / "copy"
    plant.copy_to(copy)
    await plant.install(copy, database_url)
    async with played(serve, copy) as scene:
        seen = await scene.look(within_s=0)
        if not plant.seen_by <= seen:
            driver, trip = scene.last
            await driver.act("arrive", trip)
            scene.server.kill9()  # what was not committed by now never is
            seen |= await scene.look(within_s=0)
        assert plant.seen_by <= seen
