"""What differs between Redis and Postgres is found by kind, told once it stays, and repaired."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from dispatcher.core.zones import Zone, Zones
from dispatcher.live.inspection import Inspection
from dispatcher.live.keys import keys_of
from dispatcher.service.consistency import Consistency
from dispatcher.service.drift import DriftKind
from dispatcher.service.drift_repair import DriftRepair
from tests.harness.services import PLACE, City, driver, key, open_city, rider


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    zones = Zones([Zone("default"), Zone("north")])
    async with open_city(redis_url, database_url, zones=zones) as opened:
        yield opened


class Tools:
    """The check and the repair of a city's default zone."""

    def __init__(self, city: City) -> None:
        inspection = Inspection(city.parts.live.pipeline)
        self.keys = keys_of("default")
        self.consistency = Consistency(
            inspection=inspection, database=city.parts.ledger.database, fix_age_s=60, lease_ms=10_000
        )
        self.drift_repair = DriftRepair(
            inspection=inspection, consistency=self.consistency, claims=city.parts.live.claims,
            rehydration=city.parts.rehydration,
        )  # fmt: skip

    async def found(self) -> list[tuple[DriftKind, str]]:
        return [
            (drift.kind, drift.subject) for drift in await self.consistency.check(self.keys, rest_s=0)
        ]

    async def repaired(self) -> list[tuple[DriftKind, str]]:
        """What is left of it after a repair."""
        await self.drift_repair.repair(self.keys, await self.consistency.check(self.keys, rest_s=0))
        return await self.found()


@pytest.fixture
async def tools(city: City) -> Tools:
    """A zone with a trip of each state, and drivers who are free, busy, offline and elsewhere."""
    for name in ("d1", "d2", "d3"):
        city.parts.presence.seen_over_http(driver(name), None, "app")
        await city.online(name, location=PLACE)
    city.parts.presence.seen_over_http(driver("d4"), None, "app")
    await city.online("d4")
    await city.available("d4", zone="north")
    await city.available("d3", is_online=False)
    for name, actions in (
        ("t1", []),
        ("t2", ["accept"]),
        ("t3", ["accept", "arrive", "start", "complete"]),
    ):
        trip = await city.trip(trip_request_id=name)
        for action in actions:
            assert (await city.act(driver("d2"), action, trip, f"{action}-{name}")).status == 200
        if name == "t2":
            assert (await city.act(driver("d2"), "cancel", trip, "back")).status == 200
            assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    trip = await city.trip(trip_request_id="t4")
    assert (await city.act(driver("d2"), "accept", trip, "accept-t4")).status == 200
    return Tools(city)


async def test_nothing_differs(tools: Tools) -> None:
    assert await tools.found() == []


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("DEL trip:default_t1", [("trip", "default_t1"), ("waves", "default_t1")]),
        ("HSET trip:default_t4 driver_id d9", [("trip", "default_t4")]),
        ("HSET trip:default_t3 current_status ongoing", [("trip", "default_t3")]),
        ("HSET trip:default_t4 version 99", [("trip", "default_t4")]),
        ("HSET trip:default_ghost current_status accepted version 1", [("trip", "default_ghost")]),
        ("DEL driver:d1", [("driver", "d1"), ("geo", "d1")]),
        ("HSET driver:d3 is_online 1 fix_ms 1", [("driver", "d3"), ("geo", "d3")]),
        ("HSET driver:d4 is_online 1 version 9", [("driver", "d4")]),
        ("HSET driver:d2 trip_id default_t3", [("driver", "d2")]),
        ("HSET driver:d9 is_online 1 trip_id default_t4", [("driver", "d9")]),
        ("GEOADD geo:car -73.9 40.7 d2", [("geo", "d2")]),
        ("ZREM geo:car d1", [("geo", "d1")]),
        ("ZADD offers:default_t4 99999999999999 d1", [("offers", "default_t4")]),
        ("ZREM waves default_t1", [("waves", "default_t1")]),
        ("ZADD waves 99999999999999 default_t3", [("waves", "default_t3")]),
        ("ZADD claims 1 gone.1|default_t1|d1", [("claims", "gone.1 default_t1 d1")]),
        ("ZREM present driver:d1", [("presence", "d1")]),
        ("SET idem:d2:/act:accept-t4 D|0|200|{}", [("answers", "d2 /act accept-t4")]),
        ("SET idem:d2:/act:never D|0|200|{}", [("answers", "d2 /act never")]),
    ],
)
async def test_each_kind_is_found_and_repaired(
    city: City, tools: Tools, command: str, found: list[tuple[str, str]]
) -> None:
    verb, name, *arguments = command.split(" ")
    arguments = [argument.replace("|", " ") for argument in arguments]
    await city.redis(verb, tools.keys.prefix + name, *arguments)
    found_now = await tools.found()
    if found == [("driver", "d3"), ("geo", "d3")]:
        found = found[:1]  # whose fix is old need not be listed
    assert found_now == found
    assert await tools.repaired() == []


async def test_what_is_being_changed_is_no_drift(city: City, tools: Tools) -> None:
    await city.redis("HSET", tools.keys.trip("default_t4"), "version", 99)
    await city.redis("SET", tools.keys.trip_claim("default_t4"), "somebody", "PX", 10_000)
    assert await tools.found() == []


async def test_a_busy_zone_has_no_drift(city: City, tools: Tools) -> None:
    rng = random.Random(3)
    names = [f"b{i}" for i in range(6)]
    for name in names:
        city.parts.presence.seen_over_http(driver(name), None, "app")
    await city.online(*names)
    stop = asyncio.Event()

    async def work(name: str) -> None:
        while not stop.is_set():
            await city.available(name, is_online=True, location=PLACE)
            trip = await city.trip(customer=name)
            if (await city.act(driver(name), "accept", trip)).status == 200:
                for action in rng.choice((["cancel"], ["arrive", "start", "complete"])):
                    await city.act(driver(name), action, trip)
            await city.available(name, is_online=False)
            await city.act(rider(name), "cancel", trip)

    working = [asyncio.create_task(work(name)) for name in names]
    try:
        for _ in range(5):
            assert await tools.consistency.check(tools.keys, rest_s=0.1) == []
    finally:
        stop.set()
        await asyncio.gather(*working)


async def test_an_answer_is_found_for_odd_users(city: City, tools: Tools) -> None:
    actor = driver("a:b|c")
    city.parts.presence.seen_over_http(actor, None, "app")
    answer = await city.available("a:b|c", is_online=True, key=key(actor, "k:1"))
    assert answer.status == 200
    assert await tools.found() == []
