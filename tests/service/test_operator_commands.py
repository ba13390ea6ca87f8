"""What an operator does for a driver: the same claim, commit and settle, and the history says who did it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import orjson
import pytest
import structlog

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Zone, Zones
from dispatcher.demo.invariants import check_invariants
from dispatcher.live.pubsub import Listener
from dispatcher.observe.call_ids import TRIP_ID
from dispatcher.service.answers import Answer
from dispatcher.service.commands.actions import assign_trip
from tests.harness.services import PLACE, City, code_of, driver, key, open_city

OPERATOR = Actor("operator-1", Role.ADMIN)


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    zones = Zones([Zone("default"), Zone("asked", accept_policy="offered")])
    async with open_city(redis_url, database_url, zones=zones) as opened:
        yield opened


async def _assign(city: City, trip: str, name: str, text: str | None = None, **more: Any) -> Answer:
    chosen = key(OPERATOR, text, orjson.dumps([trip, name])) if text else None
    return await city.parts.coordinator.execute(
        assign_trip(city.parts.zones, Caller(OPERATOR, chosen), trip, name, **more)
    )


async def _force_offline(city: City, name: str, text: str | None = None) -> Answer:
    chosen = key(OPERATOR, text, orjson.dumps(name)) if text else None
    return await city.parts.availability.force_offline(Caller(OPERATOR, chosen), name)


async def _last_event(city: City, trip: str) -> dict[str, Any]:
    row = await city.postgres.fetchrow(
        "SELECT * FROM trip_events WHERE trip_id = $1 ORDER BY version DESC LIMIT 1", trip
    )
    assert row is not None
    return {**row, "payload": orjson.loads(row["payload"])}


async def test_an_assigned_trip_is_the_drivers_and_the_event_is_the_operators(city: City) -> None:
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    answer = await _assign(city, trip, "d1", "k1")
    assert (answer.status, code_of(answer)) == (200, "trip_accepted")
    event = await _last_event(city, trip)
    assert (event["event"], event["actor_id"], event["actor_role"]) == (
        "accepted",
        "operator-1",
        "admin",
    )
    assert event["payload"]["driver_id"] == "d1"
    assert (await city.row(trip))["driver_id"] == "d1"
    again = await _assign(city, trip, "d1", "k1")
    assert again.replayed
    assert again.body == answer.body
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver("d1"), action, trip)).status == 200


async def test_each_action_of_an_operator_has_a_line_that_names_them(city: City) -> None:
    await city.online("d1", "d2", location=PLACE)
    caller = Caller(OPERATOR)
    with structlog.testing.capture_logs() as logs:
        assigned, taken, ended, waiting = [await city.trip(customer=f"r{n}") for n in range(4)]
        await _assign(city, assigned, "d1", "k1")
        await _assign(city, assigned, "d1", "k1")  # the same once more
        assert (await city.act(driver("d2"), "accept", taken)).status == 200
        for trip in (assigned, assigned, waiting):
            await city.act(OPERATOR, "cancel", trip)
        await _force_offline(city, "d2")
        assert TRIP_ID.get() == taken  # the call does not name it
        await city.online("d1")
        for action in ("accept", "arrive", "start"):
            assert (await city.act(driver("d1"), action, ended)).status == 200
        assert (await city.parts.stranded_trips.end(caller, ended)).status == 200
    assert [
        {name: value for name, value in line.items() if name not in ("log_level", "zone", "waited_ms")}
        for line in logs
        if line["event"].endswith("by an operator") or line["event"] == "Trip assigned"
    ] == [
        {"event": "Trip assigned", "trip_id": assigned, "driver_id": "d1", "version": 1,
         "by": "admin", "operator": "operator-1", "offered": 0},
        {"event": "Trip assigned", "trip_id": taken, "driver_id": "d2", "version": 1,
         "by": "driver", "offered": 0},
        {"event": "Trip cancelled by an operator", "operator": "operator-1", "trip_id": assigned,
         "driver_id": "d1", "version": 2},
        {"event": "Trip cancelled by an operator", "operator": "operator-1", "trip_id": waiting,
         "driver_id": None, "version": 1},
        {"event": "Driver taken offline by an operator", "operator": "operator-1", "driver_id": "d2",
         "trip_id": taken},
        {"event": "Trip assigned", "trip_id": ended, "driver_id": "d1", "version": 1,
         "by": "driver", "offered": 0},
        {"event": "Trip completed by an operator", "operator": "operator-1", "trip_id": ended,
         "driver_id": "d1", "version": 4},
    ]  # fmt: skip


async def test_one_operator_may_assign_many_trips_at_once(city: City, database_url: str) -> None:
    await city.online("d1", "d2", location=PLACE)
    for name in ("d1", "d2"):
        assert (await _assign(city, await city.trip(), name)).status == 200
    findings = await check_invariants(database_url)
    assert [(f.name, f.examples) for f in findings if f.violations] == []


async def test_an_assignment_needs_no_offer_and_everything_else(city: City) -> None:
    await city.online("d1", "d2", zone="asked", location=PLACE)
    trip = await city.trip(zone="asked")
    assert code_of(await city.act(driver("d1"), "accept", trip)) == "not_offered"
    assert code_of(await _assign(city, trip, "d1", version=7)) == "version_conflict"
    assert code_of(await _assign(city, trip, "nobody")) == "driver_not_online"
    assert (await _assign(city, trip, "d1", version=0)).status == 200
    assert code_of(await _assign(city, trip, "d2")) == "trip_already_assigned"
    other = await city.trip(zone="asked")
    assert code_of(await _assign(city, other, "d1")) == "driver_not_available"
    await city.available("d2", availability_status="unavailable")
    assert code_of(await _assign(city, other, "d2")) == "driver_not_available"


async def test_a_driver_is_forced_offline_and_loses_what_has_not_started(city: City) -> None:
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    answer = await _force_offline(city, "d1", "k1")
    assert orjson.loads(answer.body)["released_trip"]["current_status"] == "pending"
    assert (await _force_offline(city, "d1", "k1")).body == answer.body
    event = await _last_event(city, trip)
    assert (event["event"], event["actor_id"], event["actor_role"]) == (
        "released",
        "operator-1",
        "admin",
    )
    assert event["payload"]["former_driver"] == "d1"
    assert not await city.postgres.fetchval("SELECT is_online FROM driver_details WHERE user_id = 'd1'")
    # Who lost it so does not get it again, whichever store is asked.
    assert await city.redis("SMEMBERS", city.keys(trip).barred(trip)) == ["d1"]
    await city.online("d1", location=PLACE)
    assert await city.parts.reads.pending_near(driver("d1"), 9) == []
    (row,) = await city.parts.ledger.database.rows("offers_so_far", ids=[trip])
    assert row["barred"] == ["d1"]


async def test_a_driver_is_told_that_they_were_forced_offline(city: City) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    told = asyncio.Event()
    subscriber = city.parts.subscriber

    def hear(name: str, payload: bytes) -> None:
        heard.append((name, orjson.loads(payload)))
        told.set()

    for name in ("d1", "d2"):
        stands = asyncio.Event()
        subscriber.subscribe(
            city.keys().channel(f"driver:{name}"), Listener(partial(hear, name), stands.set)
        )
        async with asyncio.timeout(10):
            await stands.wait()
    await city.online("d1", "d2", location=PLACE)
    trip = await city.trip()
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    for name, frames in (("d1", {"trip", "driver"}), ("d2", {"driver"})):
        heard.clear()
        assert (await _force_offline(city, name)).status == 200
        async with asyncio.timeout(10):
            while not any(frame["type"] == "driver" for _, frame in heard):
                told.clear()
                await told.wait()
        mine = [frame for to, frame in heard if to == name]
        assert {frame["type"] for frame in mine} == frames
        (state,) = (frame["driver"] for frame in mine if frame["type"] == "driver")
        assert (state["user_id"], state["is_online"]) == (name, False)


async def test_only_a_driver_who_is_known_is_forced_offline(city: City) -> None:
    with pytest.raises(Refusal) as refused:
        await _force_offline(city, "nobody")
    assert refused.value.code == "driver_not_found"


async def test_an_operators_changes_that_nobody_settled_are_settled(city: City) -> None:
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    assert (await _assign(city, trip, "d1")).status == 200
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert (await city.hash(trip))["driver_id"] == "d1"
    assert (trip, 1) in {(id_, version) for _, id_, version in await city.events()}
    assert (await _force_offline(city, "d1")).status == 200
    assert (await city.hash(trip))["current_status"] == "pending"
