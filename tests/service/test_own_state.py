"""What apps ask of themselves, and operators of a zone: drivers' states, customers' live trips, waits and waves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Zone, Zones
from tests.harness.services import PLACE, City, driver, open_city, rider
from tests.service.test_operator_reads import offer, operator_reads


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    zones = Zones([Zone("default"), Zone("north")])
    async with open_city(redis_url, database_url, zones=zones) as opened:
        yield opened


async def _state(city: City, name: str = "d1") -> dict[str, Any]:
    return await city.parts.snapshots.driver_state(driver(name))


async def test_a_driver_sees_their_state_and_what_keeps_offers_away(city: City) -> None:
    never = await _state(city)
    assert never == {
        "driver": None, "trip": None, "offers": [], "queue": None,
        "keeps_offers_away": ["offline", "unavailable", "no_position"],
    }  # fmt: skip
    await city.online("d1")
    assert (await _state(city))["keeps_offers_away"] == ["no_position"]
    await city.available("d1", location=PLACE)
    assert (await _state(city))["keeps_offers_away"] == []
    trip = await city.trip()
    await offer(city, "d1")
    state = await _state(city)
    assert [o["trip"]["id"] for o in state["offers"]] == [trip]
    assert state["offers"][0]["expires_in_ms"] > 0
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    state = await _state(city)
    assert (state["trip"]["id"], state["offers"]) == (trip, [])
    assert state["keeps_offers_away"] == ["active_trip"]
    await city.redis("HSET", city.keys().driver("d1"), "fix_ms", 1)
    assert (await _state(city))["keeps_offers_away"] == ["active_trip", "stale_position"]
    await city.available("d1", is_online=False)
    state = await _state(city)
    assert (state["driver"]["is_online"], state["trip"]) == (False, None)
    assert state["keeps_offers_away"][0] == "offline"


async def test_what_a_driver_hears_of_a_change_is_what_they_read(city: City) -> None:
    """The answer to a change of availability and the state say the same."""
    for change in (
        {"is_online": True}, {"availability_status": "unavailable"}, {"location": PLACE},
        {"availability_status": "available"}, {"zone": "north"}, {"is_online": False},
    ):  # fmt: skip
        answer = await city.available("d1", **change)
        heard = orjson.loads(answer.body)["keeps_offers_away"]
        assert (await _state(city))["keeps_offers_away"] == heard, change


async def test_an_emptied_redis_asks_postgres(city: City) -> None:
    await city.online("d1", location=PLACE)
    await city.parts.positions.save()
    await city.redis("FLUSHDB")
    state = await _state(city)
    assert (state["driver"]["is_online"], state["keeps_offers_away"]) == (True, [])


async def test_a_customers_live_trips_in_pages(city: City) -> None:
    trips = [await city.trip(customer="r1") for _ in range(5)]
    await city.trip(customer="r2")
    assert (await city.act(rider("r1"), "cancel", trips[1])).status == 200
    # Some may have been created in one millisecond.
    for number, trip in enumerate(trips):
        await city.postgres.execute(
            "UPDATE trip_requests SET created_at = created_at + $2 * interval '1 ms' WHERE id = $1",
            trip, number,
        )  # fmt: skip
    found: list[str] = []
    after = None
    while True:
        page = await city.parts.snapshots.rides(rider("r1"), after, 2)
        assert len(page["trips"]) <= 2
        found += [trip["id"] for trip in page["trips"]]
        if (after := page["next"]) is None:
            break
    assert found == [trips[4], trips[3], trips[2], trips[0]]


async def test_pending_trips_of_a_zone_with_their_waves(city: City) -> None:
    reads = operator_reads(city.parts)
    await city.online("d1", "d2", location=PLACE)
    first = await city.trip()
    await offer(city, "d1", "d2")
    second, third = await city.trip(), await city.trip()
    elsewhere = await city.trip(zone="north")
    page = await reads.pending("default", None, 2)
    assert [trip["id"] for trip in page["trips"]] == [first, second]
    assert (page["trips"][0]["wave"], sorted(page["trips"][0]["offered_to"])) == (1, ["d1", "d2"])
    assert page["trips"][0]["next_wave_at"] > page["trips"][0]["created_at"]
    assert (page["trips"][1]["wave"], page["trips"][1]["offered_to"]) == (0, [])
    rest = await reads.pending("default", page["next"], 2)
    assert ([trip["id"] for trip in rest["trips"]], rest["next"]) == ([third], None)
    assert [t["id"] for t in (await reads.pending("north", None, 9))["trips"]] == [elsewhere]
    await city.redis("FLUSHDB")
    (lost, *_) = (await reads.pending("default", None, 1))["trips"]
    assert (lost["id"], lost["wave"], lost["next_wave_at"]) == (first, None, None)
    with pytest.raises(Refusal) as refused:
        await reads.pending("nowhere", None, 9)
    assert refused.value.code == "invalid_zone"


async def test_statistics_count_trips_and_drivers(city: City) -> None:
    empty = await city.parts.reads.zone_statistics("north")
    assert empty == {
        "zone": "north", "trips": {},
        "drivers": {"online": 0, "on_trip": 0, "free": 0, "unavailable": 0},
    }  # fmt: skip
    await city.online("d1", "d2", "d3", "d4", location=PLACE)
    await city.online("n1", zone="north")
    await city.available("d3", availability_status="unavailable")
    await city.available("d4", is_online=False)
    trip = await city.trip()
    await city.trip()
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    found = await city.parts.reads.zone_statistics("default")
    assert found["trips"] == {"pending": 1, "accepted": 1}
    assert found["drivers"] == {"online": 3, "on_trip": 1, "free": 1, "unavailable": 1}
