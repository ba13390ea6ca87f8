"""An operator asks one driver for a trip: the offer is as any other, and its row says who made it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Wave, Zone, Zones
from dispatcher.service.answers import Answer
from tests.harness.services import PLACE, City, code_of, driver, open_city, rider

OPERATOR = Actor("op-1", Role.ADMIN)
FAR = (PLACE[0] + 0.2, PLACE[1])
ZONES = Zones([Zone("default", waves=(Wave(1, 2_000.0, 30.0),), accept_policy="offered"), Zone("north")])


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, zones=ZONES) as opened:
        yield opened


async def here(city: City, *names: str, at: tuple[float, float] = PLACE, **more: Any) -> None:
    for name in names:
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")
        await city.available(name, is_online=True, location=at, **more)


async def ask(city: City, trip: str, name: str, operator: Actor = OPERATOR) -> Answer:
    return await city.parts.operator_offers.offer(Caller(operator), trip, name)


async def rows(city: City, trip: str) -> list[dict[str, Any]]:
    return await city.parts.reads.offers(trip)


async def test_a_driver_far_away_is_asked_and_takes_the_trip(city: City) -> None:
    await here(city, "near-1", "near-2")
    await here(city, "far", at=FAR)
    trip = await city.trip()
    await city.parts.offers.run_due("default")  # one of the near ones has an offer now
    assert code_of(await city.act(driver("far"), "accept", trip)) == "not_offered"
    answer = await ask(city, trip, "far")
    assert answer.status == 200, answer
    body = orjson.loads(answer.body)
    assert (body["response_code"], body["trip"]["id"]) == ("trip_offered", trip)
    assert 0 < body["offer"]["expires_in_ms"] <= 30_000
    row = next(row for row in await rows(city, trip) if row["driver_id"] == "far")
    assert (row["offered_by"], row["outcome"]) == ("op-1", "open")
    assert row["distance_m"] == pytest.approx(22_239, abs=50)
    assert {row["driver_id"]: row["offered_by"] for row in await rows(city, trip)} in (
        {"far": "op-1", "near-1": None}, {"far": "op-1", "near-2": None},
    )  # fmt: skip
    holders = await city.redis("ZRANGE", city.keys().offers(trip), 0, -1)
    assert len(holders) == 2, "the offer of the wave stays"
    assert (await city.act(driver("far"), "accept", trip)).status == 200
    assert (await city.row(trip))["driver_id"] == "far"


async def test_asked_again_it_is_the_same_offer(city: City) -> None:
    await here(city, "d1")
    trip = await city.trip()
    answers = await asyncio.gather(*(ask(city, trip, "d1") for _ in range(20)))
    assert {answer.status for answer in answers} <= {200, 409}
    made = {orjson.loads(a.body)["offer"]["deadline"] for a in answers if a.status == 200}
    assert len(made) == 1
    assert {code_of(answer) for answer in answers if answer.status == 409} <= {"trip_busy"}
    again = await ask(city, trip, "d1", Actor("op-2", Role.ADMIN))
    assert orjson.loads(again.body)["offer"]["deadline"] in made
    saved = await city.postgres.fetch("SELECT offered_by FROM trip_offers WHERE trip_id = $1", trip)
    assert [row["offered_by"] for row in saved] == ["op-1"]


async def test_who_may_not_have_it_is_not_asked(city: City) -> None:
    trip = await city.trip()
    with pytest.raises(Refusal) as unknown:
        await ask(city, "nowhere_1", "d1")
    assert unknown.value.code == "trip_not_found"
    assert code_of(await ask(city, "default_none", "d1")) == "trip_not_found"
    assert code_of(await ask(city, trip, "nobody")) == "driver_not_found"
    await here(city, "d1", "declines", "van", "stale", "away", "busy")
    await here(city, "north", zone="north")
    assert code_of(await ask(city, trip, "north")) == "driver_not_online"
    await city.available("d1", is_online=False)
    assert code_of(await ask(city, trip, "d1")) == "driver_not_online"
    await city.available("d1", is_online=True, availability_status="unavailable")
    assert code_of(await ask(city, trip, "d1")) == "driver_not_available"
    assert (await ask(city, trip, "busy")).status == 200
    other = await city.trip(customer="r2")
    assert (await city.act(driver("busy"), "accept", trip)).status == 200
    assert code_of(await ask(city, other, "busy")) == "driver_not_available"
    assert code_of(await ask(city, trip, "van")) == "trip_already_assigned"
    assert (await city.act(driver("declines"), "decline", other)).status == 200
    await city.available("van", vehicle_type="van", location=PLACE)
    await city.redis("HSET", city.keys().driver("stale"), "fix_ms", 1)
    await city.redis("ZREM", city.keys().present, "driver:away")
    for name, filters in (
        ("declines", ["barred"]), ("van", ["other_vehicle_type"]), ("stale", ["stale_position"]),
        ("away", ["not_present"]),
    ):  # fmt: skip
        problem = orjson.loads((await ask(city, other, name)).body)
        assert (problem["response_code"], problem["filters"]) == ("driver_not_eligible", filters)
        assert problem["message"].startswith("No offer: ")
    assert (await city.act(rider("r2"), "cancel", other)).status == 200
    assert code_of(await ask(city, other, "declines")) == "trip_not_pending"


async def test_an_offer_by_hand_and_an_accept_at_once_have_one_winner(city: City) -> None:
    await here(city, *(f"d{i}" for i in range(6)))
    trips = [await city.trip(customer=f"r{i}") for i in range(6)]
    for _ in range(3):
        await asyncio.gather(
            *(ask(city, trip, f"d{i}") for i in range(6) for trip in trips),
            *(city.act(driver(f"d{i}"), "accept", trip) for i in range(6) for trip in trips),
        )
    assert await city.double_assignments() == 0
    held = await city.postgres.fetch(
        "SELECT driver_id FROM trip_requests WHERE current_status = 'accepted'"
    )
    assert len({row["driver_id"] for row in held}) == len(held) > 0


async def test_it_counts_against_the_operators_limit(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, limit_operator="2/60") as city:
        trip = await city.trip(customer="r9")
        first = await ask(city, trip, "nobody")
        assert first.limit is not None
        assert first.limit.remaining == 1
        await ask(city, trip, "nobody")
        with pytest.raises(Refusal) as limited:
            await ask(city, trip, "nobody")
        assert limited.value.code == "rate_limit_exceeded"
