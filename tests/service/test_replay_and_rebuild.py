"""A trip's row is what follows from its history, or it is told; a zone is loaded anew while it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Zones
from dispatcher.operations.rebuild import rebuild, rebuild_lines
from dispatcher.operations.replay import replay, replay_lines
from dispatcher.operations.workbench import Workbench
from tests.harness.services import PLACE, City, driver, open_city, rider


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


def _bench(city: City) -> Workbench:
    parts = city.parts
    return Workbench(
        parts.settings, Zones(), parts.live, parts.ledger, parts.authorities, parts.rehydration
    )


async def _rich_history(city: City) -> str:
    """Given back, taken again, finished."""
    await city.online("d1", "d2", location=PLACE)
    trip_id = await city.trip()
    await city.act(driver("d1"), "accept", trip_id)
    await city.act(driver("d1"), "cancel", trip_id)
    assert (await city.act(driver("d2"), "accept", trip_id)).status == 200
    assert (await city.act(driver("d1"), "accept", trip_id)).status == 409
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver("d2"), action, trip_id)).status == 200
    for _ in range(2):  # a race waits for one round
        await city.parts.effects.race_log.save(city.parts.ledger.database)
    await city.postgres.execute(
        "INSERT INTO trip_offers VALUES ($1, 'd1', 1, 250, now() - interval '1 hour', now(), 'expired',"
        " now() - interval '59 minutes')", trip_id,
    )  # fmt: skip
    return trip_id


async def test_every_event_and_offer_in_order_and_the_row_that_follows(city: City) -> None:
    trip_id = await _rich_history(city)
    result = await replay(_bench(city), trip_id)
    assert [step["what"] for step in result["steps"]] == [
        "offered", "offer expired",
        "created", "accepted", "released", "accepted", "came too late", "arrived", "started", "completed",
    ]  # fmt: skip
    assert (result["faults"], result["differences"]) == ([], [])
    assert result["follows"] == result["row"]
    assert replay_lines(result)[-1] == "the row is what follows: completed"


async def test_a_cancelled_trip_keeps_its_reason(city: City) -> None:
    trip_id = await city.trip()
    await city.act(rider("rider"), "cancel", trip_id, reason="late")
    result = await replay(_bench(city), trip_id)
    assert (result["faults"], result["differences"]) == ([], [])


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE trip_requests SET driver_id = 'd9' WHERE id = $1",
         "driver_id: d2 follows, d9 is in the row"),
        ("DELETE FROM trip_events WHERE trip_id = $1 AND version = 4",
         "not allowed: version 5: started does not lead from accepted to ongoing"),
        ("DELETE FROM trip_events WHERE trip_id = $1", "*: None follows"),
    ],
)  # fmt: skip
async def test_what_does_not_follow_is_told(city: City, statement: str, told: str) -> None:
    trip_id = await _rich_history(city)
    await city.postgres.execute(statement, trip_id)
    lines = replay_lines(await replay(_bench(city), trip_id))
    assert any(line.startswith(told) for line in lines), lines


@pytest.mark.parametrize("trip_id", ["default_x", "nowhere_x", "?"])
async def test_a_trip_that_there_is_not(city: City, trip_id: str) -> None:
    with pytest.raises(Refusal, match="trip_not_found"):
        await replay(_bench(city), trip_id)


async def test_a_rebuilt_zone_is_that_of_postgres_and_keeps_what_postgres_lacks(city: City) -> None:
    await city.online("d1", "d2", location=PLACE)
    taken = await city.trip()
    await city.act(driver("d1"), "accept", taken)
    await city.redis("HSET", city.keys().trip("default_ghost"), "id", "default_ghost")
    await city.redis("RPUSH", city.keys().limit("general", "d1"), 1)
    lines = rebuild_lines(await rebuild(_bench(city), "default"))
    assert lines[0] == "default: loaded 1 trips and 2 drivers from Postgres (there were 2 and 2)"
    assert await city.redis("EXISTS", city.keys().trip("default_ghost")) == 0
    assert await city.redis("LLEN", city.keys().limit("general", "d1")) >= 1
    # The position was not saved yet, and the driver who has a trip is not offered another one.
    assert await city.redis("ZRANGE", city.keys().geo("car"), 0, -1) == ["d2"]


async def test_a_zone_is_rebuilt_while_it_is_used(city: City) -> None:
    await city.online("d1", location=PLACE)
    epoch = await city.redis("GET", city.keys().epoch)

    async def work() -> None:
        for _ in range(20):
            trip_id = await city.trip()
            for action in ("accept", "arrive", "start", "complete"):
                assert (await city.act(driver("d1"), action, trip_id)).status == 200

    async def load_anew() -> None:
        for _ in range(3):
            await rebuild(_bench(city), "default")

    await asyncio.gather(work(), load_anew())
    assert await city.redis("GET", city.keys().epoch) != epoch
    assert await city.double_assignments() == 0
