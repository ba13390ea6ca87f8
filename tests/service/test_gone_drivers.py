"""A driver's hash ends some time after they left; they come back to what Postgres knows of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest

from dispatcher.core.callers import Caller
from tests.harness.services import PLACE, City, code_of, driver, open_city


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def _leave(city: City, name: str) -> None:
    """The driver goes offline, and the time of their hash goes by."""
    assert (await city.available(name, is_online=False)).status == 200
    own = city.keys().driver(name)
    assert 0 < await city.redis("TTL", own) <= 3_600
    await city.redis("PEXPIRE", own, 0)
    assert await city.redis("EXISTS", own) == 0


async def test_who_left_long_ago_goes_online_again(city: City) -> None:
    await city.online("d1", vehicle_type="van", location=PLACE)
    version = await city.postgres.fetchval("SELECT version FROM driver_details WHERE user_id = 'd1'")
    await _leave(city, "d1")
    # Nothing of theirs is left in the zone.
    assert await city.redis("EXISTS", city.keys().geo("van"), city.keys().seen) == 0

    trip = await city.trip(vehicle_type="van")
    assert code_of(await city.act(driver("d1"), "accept", trip)) == "driver_not_online"
    await city.redis("PEXPIRE", city.keys().driver("d1"), 0)
    report = await city.parts.positions.report(Caller(driver("d1")), [(*PLACE, None)])
    assert code_of(report) == "driver_not_online"
    await city.redis("PEXPIRE", city.keys().driver("d1"), 0)

    answer = await city.available("d1", is_online=True, location=PLACE)
    assert orjson.loads(answer.body)["driver"]["vehicle_type"] == "van"
    row = await city.postgres.fetchrow("SELECT version, is_online FROM driver_details")
    assert row is not None
    assert tuple(row) == (version + 2, True)
    assert await city.redis("TTL", city.keys().driver("d1")) == -1
    assert await city.redis("ZRANGE", city.keys().geo("van"), 0, -1) == ["d1"]
    assert (await city.act(driver("d1"), "accept", trip)).status == 200


async def test_who_is_offline_on_a_trip_is_kept(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    for action in ("accept", "arrive", "start"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert (await city.available("d1", is_online=False)).status == 200
    own = city.keys().driver("d1")
    assert await city.redis("TTL", own) == -1
    # Also where Redis forgot both, and the trip is loaded before its driver.
    await city.redis("DEL", own, city.keys().trip(trip))
    await city.parts.rehydration.reload_driver(city.keys(), "d1")
    assert await city.redis("TTL", own) == -1
    assert (await city.act(driver("d1"), "complete", trip)).status == 200
    assert 0 < await city.redis("TTL", own) <= 3_600
