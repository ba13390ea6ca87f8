"""What operators look up, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dispatcher.composition import Services
from dispatcher.core.errors import Refusal
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.operator_reads import OperatorReads
from tests.harness.services import PLACE, City, driver, open_city

FIX_AGE_S = 60


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, fix_max_age_s=FIX_AGE_S) as opened:
        yield opened


@pytest.fixture
def reads(city: City) -> OperatorReads:
    return operator_reads(city.parts)


def operator_reads(parts: Services) -> OperatorReads:
    return OperatorReads(
        zones=parts.zones, database=parts.ledger.database, state=parts.live.state,
        offers=parts.live.offers, presence=parts.live.presence,
        views=ZoneViewScripts(parts.live.pipeline), deliveries=parts.live.deliveries, queues=parts.queues,
        authorities=parts.authorities,
        fix_age_s=FIX_AGE_S,
    )  # fmt: skip


async def _all(ask: Callable[[str | None], Awaitable[dict[str, Any]]], what: str) -> list[Any]:
    """Every row of every page."""
    rows, after = [], None
    while True:
        page = await ask(after)
        rows += page[what]
        after = page["next"]
        if after is None:
            return rows


async def offer(city: City, *names: str, places: int = 1) -> None:
    """Runs the wave that is due, for drivers who are present, and saves its offers."""
    for name in names:
        await city.parts.presence.register(f"c-{name}", driver(name), "127.0.0.1", "a phone")
    await city.parts.offers.run_due("default")
    await save_offers(city)


async def save_offers(city: City) -> None:
    for _ in range(3):
        await city.parts.effects.offer_log.save(city.parts.ledger.database)


async def test_trips_come_latest_change_first_and_in_pages(city: City, reads: OperatorReads) -> None:
    trips = [await city.trip(customer=f"r{i}") for i in range(5)]
    await city.online("d1", location=PLACE)
    assert (await city.act(driver("d1"), "accept", trips[1])).status == 200

    async def page(after: str | None, **more: Any) -> dict[str, Any]:
        asked = {"search": None, "zone": "default", "statuses": None, "limit": 2, **more}
        return await reads.trips(after=after, **asked)

    found = [trip["id"] for trip in await _all(page, "trips")]
    assert found == [trips[1], trips[4], trips[3], trips[2], trips[0]]
    accepted = await page(None, statuses=["accepted"])
    assert [trip["id"] for trip in accepted["trips"]] == [trips[1]]
    assert (await page(None, zone="elsewhere"))["trips"] == []


async def test_a_search_finds_a_trip_its_customer_and_its_driver(
    city: City, reads: OperatorReads
) -> None:
    trip = await city.trip(customer="rider-7", trip_request_id="own-7")
    await city.trip()
    await city.online("d1", location=PLACE)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200

    async def found(search: str) -> list[str]:
        page = await reads.trips(search=search, zone=None, statuses=None, after=None, limit=9)
        return [row["id"] for row in page["trips"]]

    for search in ("default_own-7", "own-7", "rider-7", "d1"):
        assert await found(search) == [trip], search
    assert await found("own") == []
    assert await found("'; DROP TABLE trip_requests; --") == []


async def test_the_offers_of_a_trip_and_of_a_driver(city: City, reads: OperatorReads) -> None:
    await city.online("d1", "d2", "d3", location=PLACE)
    trip = await city.trip()
    await offer(city, "d1", "d2", "d3")
    assert (await city.act(driver("d1"), "decline", trip)).status == 200
    assert (await city.act(driver("d2"), "accept", trip)).status == 200
    await save_offers(city)
    rows = await _all(lambda after: reads.trip_offers(trip, after, 2), "offers")
    saved = await city.postgres.fetch(
        "SELECT driver_id, wave, outcome FROM trip_offers WHERE trip_id = $1 ORDER BY wave, driver_id",
        trip,
    )
    assert [(r["driver_id"], r["wave"], r["outcome"]) for r in rows] == [tuple(r) for r in saved]
    assert {r["driver_id"]: r["outcome"] for r in rows} == {
        "d1": "declined", "d2": "accepted", "d3": "withdrawn",
    }  # fmt: skip
    assert rows[0]["offered_at"].endswith("Z")
    mine = await _all(lambda after: reads.driver_offers("d1", after, 1), "offers")
    assert [(r["trip_id"], r["outcome"]) for r in mine] == [(trip, "declined")]
    with pytest.raises(Refusal) as refused:
        await reads.trip_offers("default_unknown", None, 9)
    assert refused.value.code == "trip_not_found"


async def test_drivers_by_the_beginning_of_their_id(city: City, reads: OperatorReads) -> None:
    await city.online("a-1", "a-2", "a-3", "b-1", location=PLACE)
    await city.available("a-2", is_online=False)

    async def page(after: str | None, **more: Any) -> dict[str, Any]:
        asked = {"search": "a-", "zone": "default", "only_online": False, "limit": 2, **more}
        return await reads.drivers(after=after, **asked)

    assert [d["user_id"] for d in await _all(page, "drivers")] == ["a-1", "a-2", "a-3"]
    online = await page(None, only_online=True)
    assert [d["user_id"] for d in online["drivers"]] == ["a-1", "a-3"]


async def test_a_driver_with_all_that_keeps_offers_away(city: City, reads: OperatorReads) -> None:
    await city.online("d1")
    assert (await reads.driver("d1"))["obstacles"] == ["no_position", "not_present"]
    await city.parts.presence.register("c1", driver("d1"), "127.0.0.1", "a phone")
    await city.available("d1", location=PLACE)
    page = await reads.driver("d1")
    assert page["obstacles"] == []
    assert (page["fix"]["lat"], page["fix"]["lng"]) == PLACE
    assert page["fix"]["age_s"] < 5
    (connection,) = page["presence"]["connections"]
    assert (connection["id"], connection["user_agent"]) == ("c1", "a phone")
    trip = await city.trip()
    await offer(city, "d1")
    assert [open_["trip_id"] for open_ in (await reads.driver("d1"))["offers"]] == [trip]
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    page = await reads.driver("d1")
    assert page["obstacles"] == ["active_trip"]
    assert page["trip"]["id"] == trip
    assert [found["id"] for found in page["last_trips"]] == [trip]
    await save_offers(city)
    (offered,) = (await reads.driver("d1"))["last_offers"]
    assert (offered["trip_id"], offered["outcome"]) == (trip, "accepted")
    await city.redis("HSET", city.keys().driver("d1"), "fix_ms", 1)
    assert (await reads.driver("d1"))["obstacles"] == ["active_trip", "stale_position"]
    with pytest.raises(Refusal) as refused:
        await reads.driver("nobody")
    assert refused.value.code == "driver_not_found"
