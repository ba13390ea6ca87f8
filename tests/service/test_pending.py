"""What a driver is shown to accept is what they may accept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Zone, Zones
from tests.harness.services import PLACE, City, driver, open_city

LAT, LNG = PLACE


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    zones = Zones([Zone("default"), Zone("north"), Zone("asked", accept_policy="offered")])
    async with open_city(redis_url, database_url, zones=zones) as opened:
        yield opened


async def _shown(city: City, name: str = "d1", limit: int = 20) -> list[str]:
    return [trip["id"] for trip in await city.parts.reads.pending_near(driver(name), limit)]


async def _refused(city: City, name: str = "d1") -> str:
    with pytest.raises(Refusal) as caught:
        await _shown(city, name)
    return caught.value.code


async def _here(city: City, *names: str, **more: Any) -> None:
    await city.online(*names, location=PLACE, **more)


async def test_the_nearest_first_of_the_own_zone_and_vehicle(city: City) -> None:
    await _here(city, "d1")
    far = await city.trip(pickup=(LAT + 0.02, LNG))
    near = await city.trip(pickup=(LAT + 0.01, LNG))
    await city.trip(pickup=(LAT + 0.2, LNG))  # beyond 10 km
    await city.trip(vehicle_type="van")
    await city.trip(zone="north")
    assert await _shown(city) == [near, far]
    assert await _shown(city, limit=1) == [near]
    assert (await city.available("d1", vehicle_type="van")).status == 200
    assert [trip["vehicle_type"] for trip in await city.parts.reads.pending_near(driver("d1"), 9)] == [
        "van"
    ]


@pytest.mark.parametrize("action", ["decline", "cancel", "offline"])
async def test_no_trip_that_the_driver_is_barred_from(city: City, action: str) -> None:
    await _here(city, "d1", "d2")
    trip = await city.trip()
    if action != "decline":
        assert (await city.act(driver("d1"), "accept", trip)).status == 200
    if action == "offline":
        assert (await city.available("d1", is_online=False)).status == 200
        await _here(city, "d1")
    else:
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert await _shown(city) == []
    assert await _shown(city, "d2") == [trip]


async def test_who_may_accept_nothing_is_told_why(city: City) -> None:
    trip = await city.trip()
    await city.trip()
    assert await _refused(city, "nobody") == "driver_not_online"
    await city.online("d1")
    assert await _refused(city) == "driver_not_online", "without a position nothing is near"
    await _here(city, "d1")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    assert await _refused(city) == "driver_not_available"
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert len(await _shown(city)) == 1
    assert (await city.available("d1", availability_status="unavailable")).status == 200
    assert await _refused(city) == "driver_not_available"
    assert (await city.available("d1", is_online=False)).status == 200
    assert await _refused(city) == "driver_not_online"


async def test_where_only_offers_may_be_accepted_they_are_shown(city: City) -> None:
    await _here(city, "d1", "d2", zone="asked")
    trip = await city.trip(zone="asked")
    await city.trip(zone="asked")
    assert await _shown(city) == []
    inbox = city.keys(trip).inbox("d1")
    await city.redis("ZADD", inbox, 4_000_000_000_000, trip)
    assert await _shown(city) == [trip]
    await city.redis("ZADD", inbox, 1, trip)
    assert await _shown(city) == [], "its time is over"
    assert await _shown(city, "d2") == []


async def test_a_redis_that_forgot_the_driver_asks_postgres(city: City) -> None:
    await _here(city, "d1")
    trip = await city.trip()
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await city.redis("DEL", city.keys().driver("d1"))
    assert await _refused(city) == "driver_not_available"
