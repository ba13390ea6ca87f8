"""Ways by road: what a routing engine says in time is taken, and nothing else stops a round."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dispatcher.matching.model import NO_ROAD, NearbyDriver, WaitingTrip
from dispatcher.routing.osrm import OsrmRouting

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
TRIPS = [WaitingTrip(f"z_{i}", 50.0, 8.0 + i / 100, "car", 0, 6_000.0) for i in range(25)]
DRIVERS = [NearbyDriver(f"d{i}", 50.1, 8.0, "car", 0) for i in range(2)]
#: A place of an answer, as large as OSRM makes them.
PLACE = {"hint": "x" * 120, "name": "y" * 90, "location": [8.123456, 50.123456], "distance": 12.345678}
PAIRS = [(trip, DRIVERS) for trip in TRIPS]
GOOD = {"code": "Ok", "durations": [[900], [900]]}


class Engine:
    """A routing engine whose answer a test chooses."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.asked: list[str] = []
        self.answer: Answer = self.table

    @property
    def url(self) -> str:
        return str(self.server.make_url("/"))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        return await self.answer(request)

    async def table(self, request: web.Request) -> web.Response:
        """Each way takes 1,000 s, and as many more as its place among all of the table."""
        pickups = len(request.query["destinations"].split(";"))
        drivers = len(request.query["sources"].split(";"))
        rows = [[1_000.0 + d * pickups + p for p in range(pickups)] for d in range(drivers)]
        assert request.headers["Accept-Encoding"] == "identity"
        return web.json_response({"code": "Ok", "durations": rows, "sources": [PLACE] * drivers})


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    application = web.Application()
    server = TestServer(application)
    made = Engine(server)
    application.router.add_get("/table/v1/driving/{places}", made.handle)
    async with server:
        yield made


@pytest.fixture
async def routing() -> AsyncIterator[OsrmRouting]:
    made = OsrmRouting()
    yield made
    await made.close()


async def test_trips_are_asked_about_in_batches(engine: Engine, routing: OsrmRouting) -> None:
    ways = await routing.ways(engine.url, PAIRS, deadline_s=5)
    assert len(ways) == len(TRIPS) * len(DRIVERS)
    assert len(engine.asked) == 3
    assert ways["z_0", "d0"] == 1_000.0
    assert ways["z_1", "d1"] == 1_011.0
    assert routing.fallbacks == 0
    assert any(path.startswith("/table/v1/driving/8.000000,50.100000;") for path in engine.asked)


async def test_without_a_driver_in_reach_nothing_is_asked(engine: Engine, routing: OsrmRouting) -> None:
    assert await routing.ways(engine.url, [(TRIPS[0], [])], deadline_s=5) == {}
    assert engine.asked == []


async def test_where_there_is_no_road_that_is_said(engine: Engine, routing: OsrmRouting) -> None:
    engine.answer = _answers({"code": "Ok", "durations": [[None], [900]]})
    ways = await routing.ways(engine.url, PAIRS[:1], deadline_s=5)
    assert (ways, routing.fallbacks) == ({("z_0", "d0"): NO_ROAD, ("z_0", "d1"): 900.0}, 0)


@pytest.mark.parametrize(
    "answer",
    [
        {"code": "NoTable"},
        {"code": "Ok", "durations": [[900.0]]},
        {"code": "Ok", "durations": [[900.0], [-1.0]]},
        {"code": "Ok", "durations": [[900.0], ["soon"]]},
        {"code": "Ok", "durations": [[900.0], ["900"]]},
        {"code": "Ok", "durations": [[900.0], [True]]},
        {"code": "Ok", "durations": ["9", "9"]},
        {"code": "Ok", "durations": [{"9": 9}, {"9": 9}]},
        {"code": "Ok", "durations": [[900.0], [1e12]]},
        {"code": "Ok", "durations": [[0], [0]]},
        {"code": "Ok", "durations": [[900_000 / 3_600], [15]]},
        {"code": "Ok", "durations": [[86_000], [86_000]]},
        {"code": "Ok", "durations": [[None], [None]]},
        {"code": "Ok", "durations": 5},
        {"code": "Ok"},
        ["nonsense"],
        None,
    ],
)
async def test_nonsense_is_counted_and_nothing_of_it_taken(
    engine: Engine, routing: OsrmRouting, answer: Any
) -> None:
    engine.answer = _answers(answer)
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=5) == {}
    assert routing.fallbacks == 1


async def test_an_answer_of_another_status_is_none(engine: Engine, routing: OsrmRouting) -> None:
    engine.answer = _answers(GOOD, status=500)
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=5) == {}
    assert routing.fallbacks == 1


async def test_an_engine_sends_nobody_elsewhere(engine: Engine, routing: OsrmRouting) -> None:
    async def redirect(request: web.Request) -> web.Response:
        engine.answer = _answers(GOOD)
        raise web.HTTPFound(request.path_qs)

    engine.answer = redirect
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=5) == {}
    assert (routing.fallbacks, len(engine.asked)) == (1, 1)


async def test_a_body_is_read_up_to_what_its_table_may_need(
    engine: Engine, routing: OsrmRouting
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(json.dumps(GOOD).encode())
        while sent < 100_000_000:
            await response.write(b" " * 65_536)
            sent += 65_536
        return response

    engine.answer = endless
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=30) == {}
    assert (routing.fallbacks, sent < 100_000_000) == (1, True)


async def test_a_body_that_was_packed_is_not_unpacked(engine: Engine, routing: OsrmRouting) -> None:
    async def packed(_: web.Request) -> web.Response:
        body = gzip.compress(json.dumps(GOOD).encode() + b" " * 10_000_000)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    engine.answer = packed
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=5) == {}
    assert routing.fallbacks == 1


async def test_text_that_is_no_json_is_nonsense_too(engine: Engine, routing: OsrmRouting) -> None:
    async def text(_: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>")

    engine.answer = text
    assert await routing.ways(engine.url, PAIRS[:1], deadline_s=5) == {}
    assert routing.fallbacks == 1


async def test_a_late_answer_is_not_waited_for(engine: Engine, routing: OsrmRouting) -> None:
    released = asyncio.Event()

    async def late(_: web.Request) -> web.Response:
        await released.wait()
        return web.json_response({})

    engine.answer = late
    async with asyncio.timeout(5):
        assert await routing.ways(engine.url, PAIRS[:1], deadline_s=0.05) == {}
    assert routing.fallbacks == 1
    released.set()


async def test_an_engine_that_is_away_is_a_fallback(routing: OsrmRouting) -> None:
    assert await routing.ways("http://127.0.0.1:1", PAIRS[:1], deadline_s=5) == {}
    assert routing.fallbacks == 1


def _answers(document: Any, *, status: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    return answer
