"""One allowance a user, whatever the zones; a zone's own limit where it sets one."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass
from dispatcher.core.zones import Zone, Zones
from dispatcher.service.answers import RateLimited
from tests.harness.services import City, driver, open_city

PLACE = (40.75, -73.98)


def _zones(**limits: tuple[int, int]) -> Zones:
    return Zones([Zone("east"), Zone("west"), Zone("own", limits=limits)])


async def _statuses(city: City, *zones: str) -> list[int]:
    """Statuses of tries to accept trips that nobody has made, in these zones."""
    return [(await city.act(driver("d1"), "accept", f"{zone}_none")).status for zone in zones]


async def test_one_allowance_in_all_zones(redis_url: str, database_url: str) -> None:
    async with open_city(
        redis_url, database_url, zones=_zones(trip_accept=(1, 60)), limit_trip_accept="2/60"
    ) as city:
        assert await _statuses(city, "east", "west", "east", "west", "default") == [404, 404, *[429] * 3]
        # A zone that sets its own limit counts for itself.
        assert await _statuses(city, "own", "own") == [404, 429]


async def test_a_zone_that_turns_a_limit_off(redis_url: str, database_url: str) -> None:
    async with open_city(
        redis_url, database_url, zones=_zones(trip_accept=(0, 1)), limit_trip_accept="1/60"
    ) as city:
        assert await _statuses(city, "own", "own", "own", "east", "west") == [404] * 4 + [429]


async def test_a_zone_s_own_limit_of_positions(redis_url: str, database_url: str) -> None:
    async with open_city(
        redis_url, database_url, zones=_zones(location_update=(2, 60)), limit_location_update="3/60"
    ) as city:
        await city.online("d1", zone="own")
        await city.online("d2", zone="east")
        found = {
            name: [
                (await city.parts.positions.report(Caller(driver(name)), [(*PLACE, None)])).status
                for _ in range(4)
            ]
            for name in ("d1", "d2", "nobody")
        }
        assert found == {
            "d1": [202, 202, 429, 429],
            "d2": [202, 202, 202, 429],
            "nobody": [409, 409, 409, 429],
        }


async def test_an_operator_has_an_allowance_of_their_own(redis_url: str, database_url: str) -> None:
    """Whatever they do counts against it, and nothing of it against the app of a user of the same id."""
    admin = Actor("d1", Role.ADMIN)
    async with open_city(
        redis_url, database_url, limit_operator="4/60", limit_general="1/60", limit_trip_cancel="1/60"
    ) as city:
        trips = [await city.trip(customer=f"r{i}") for i in range(3)]
        answers = [await city.act(admin, "cancel", trip) for trip in trips]
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[-1].limit is not None
        assert answers[-1].limit.name == "operator"
        limits = city.parts.limits
        asked = await limits.count(LimitClass.GENERAL, admin, None)
        assert asked is not None
        assert (asked.name, asked.remaining) == ("operator", 0)
        assert (await city.act(admin, "cancel", "default_none")).status == 429
        own = await limits.count(LimitClass.GENERAL, driver("d1"), None)
        assert own is not None
        assert (own.name, own.remaining) == ("general", 0)


async def test_a_redis_that_lost_its_logs_opens_no_second_window_for_questions(
    redis_url: str, database_url: str
) -> None:
    """Questions have no claim that would find the zone cold."""
    async with open_city(redis_url, database_url, limit_general="5/60") as city:
        limits = city.parts.limits
        for _ in range(5):
            await limits.count(LimitClass.GENERAL, driver("d1"), None)
        await city.redis("FLUSHALL")

        async def is_admitted() -> bool:
            try:
                await limits.count(LimitClass.GENERAL, driver("d1"), None)
            except RateLimited:
                return False
            return True

        assert not any(await asyncio.gather(*(is_admitted() for _ in range(30))))
        state = await limits.count(LimitClass.GENERAL, driver("d2"), None)
        assert state is not None
        assert state.remaining == 4


async def test_a_default_zone_that_cannot_be_loaded_holds_up_no_question_of_another(
    redis_url: str, database_url: str
) -> None:
    """The server that was loading it has died; its logs count all the same."""
    zones = Zones([Zone("default"), Zone("north")])
    async with open_city(redis_url, database_url, zones=zones, limit_general="5/60") as city:
        keys, limits = city.keys(), city.parts.limits
        await limits.count(LimitClass.GENERAL, driver("d1"), None)
        await city.redis("FLUSHALL")
        await city.redis("SET", keys.loading, "somebody else", "PX", 60_000)
        async with asyncio.timeout(5):
            for remaining in (3, 2, 1, 0):
                state = await limits.count(LimitClass.GENERAL, driver("d1"), None)
                assert state is not None
                assert state.remaining == remaining
            with pytest.raises(RateLimited):
                await limits.count(LimitClass.GENERAL, driver("d1"), None)
        assert await city.redis("EXISTS", keys.epoch) == 0
        await city.redis("DEL", keys.loading)
        await city.parts.rehydration.warm("default")
