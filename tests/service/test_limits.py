"""One allowance a user, whatever the zones; a zone's own limit where it sets one."""

from __future__ import annotations

from dispatcher.core.callers import Caller
from dispatcher.core.zones import Zone, Zones
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
