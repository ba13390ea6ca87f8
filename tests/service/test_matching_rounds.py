"""Rounds of matching run beside the waves of their zone: what holds up a round holds up no other trip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from dispatcher.background import zone_holder
from dispatcher.core.zones import Dispatch, Matching, Wave, Zone, Zones
from dispatcher.matching.model import Ways
from tests.harness.services import City, driver, open_city

WAVES = (Wave(2, 1_500, 20), Wave(3, 6_000, 60))
EVERY_S = 0.5
#: About 111 m of latitude.
STEP = 0.001


class HangingRouting:
    """A routing engine that answers no question before a test lets it."""

    def __init__(self) -> None:
        self.fallbacks = 0
        self.asked = asyncio.Event()
        self.released = asyncio.Event()

    async def ways(self, *_: Any, **__: Any) -> Ways:
        self.asked.set()
        await self.released.wait()
        return {}

    async def until_asked(self) -> None:
        async with asyncio.timeout(10):
            await self.asked.wait()


@contextlib.asynccontextmanager
async def held_city(
    redis_url: str, database_url: str, dispatch: Dispatch
) -> AsyncIterator[tuple[City, HangingRouting]]:
    """A city whose zone is held by its server, and which asks a routing engine that hangs."""
    rules = Matching(dispatch, every_s=EVERY_S, head_start_s=0.3, routing_url="http://engine")
    zones = Zones([Zone("default", waves=WAVES, matching=rules)])
    async with open_city(redis_url, database_url, zones=zones) as city:
        routing = HangingRouting()
        city.parts.matched_rounds.routing = routing
        holder = zone_holder(city.parts)
        holder.start()
        try:
            yield city, routing
        finally:
            routing.released.set()
            await holder.stop()


def at(steps: float) -> tuple[float, float]:
    return 40.75 + steps * STEP, -73.98


async def drivers(city: City, **places: float) -> None:
    for name, steps in places.items():
        await city.online(name, location=at(steps))
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")


async def until_offered(city: City, *trips: str) -> None:
    """Returns once one of the trips is on offer."""
    async with asyncio.timeout(10):
        while not any([await city.redis("ZCARD", city.keys().offers(trip)) for trip in trips]):
            await asyncio.sleep(0.01)


async def test_a_hung_routing_engine_holds_up_no_trip_that_needs_no_round(
    redis_url: str, database_url: str
) -> None:
    async with held_city(redis_url, database_url, "auto") as (city, routing):
        await drivers(city, far=500, **{f"d{i}": i for i in range(6)})
        scarce = [await city.trip(pickup=at(steps)) for steps in (490, 500, 510)]
        seconds, _ = await city.redis("TIME")
        until_ms = (int(seconds) + 60) * 1000
        await city.parts.live.matching.keep_scarce(city.keys(), "car", until_ms)
        scarce += [await city.trip(pickup=at(steps)) for steps in (495, 505)]
        await routing.until_asked()
        await until_offered(city, await city.trip(pickup=at(0)))
        assert not routing.released.is_set()
        routing.released.set()
        await until_offered(city, *scarce)


async def test_who_comes_while_a_round_is_planned_is_in_the_next_one(
    redis_url: str, database_url: str
) -> None:
    async with held_city(redis_url, database_url, "matched") as (city, routing):
        await drivers(city, d1=0, d2=10)
        first = await city.trip(pickup=at(0))
        await routing.until_asked()
        second = await city.trip(pickup=at(10))
        # It is claimed again and again until the round has come to its end.
        due = set()
        async with asyncio.timeout(10):
            while len(due) < 4:
                due.add(await city.redis("ZSCORE", city.keys().waves, second))
                await asyncio.sleep(0.01)
        assert city.parts.matched_rounds.rounds == 0
        routing.released.set()
        await until_offered(city, first)
        await until_offered(city, second)
        assert city.parts.matched_rounds.rounds >= 2


async def test_who_drives_off_while_a_round_is_planned_is_not_asked(
    redis_url: str, database_url: str
) -> None:
    async with held_city(redis_url, database_url, "matched") as (city, routing):
        await drivers(city, d1=0, d2=10)
        trip = await city.trip(pickup=at(0))
        await routing.until_asked()
        await city.parts.positions.take("d1", [(*at(250), None)])
        routing.released.set()
        await until_offered(city, trip)
        assert await city.redis("ZRANGE", city.keys().offers(trip), 0, -1) == ["d2"]
