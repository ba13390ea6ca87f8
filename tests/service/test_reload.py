"""Another Redis is a cold Redis: its zones are made equal to Postgres before they decide again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.settle import Settler
from dispatcher.live.state import Fix
from tests.harness.services import City, code_of, driver, open_city, rider
from tests.service.failover import StaleReplica


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def take(city: City, name: str, trip: str, *actions: str) -> None:
    for action in ("accept", *actions):
        assert (await city.act(driver(name), action, trip)).status == 200


async def test_a_driver_whose_completion_was_lost_is_free(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    await take(city, "d1", trip, "arrive", "start")
    replica = await StaleReplica.of(city)
    assert (await city.act(driver("d1"), "complete", trip)).status == 200
    await replica.take_over()
    snapshot = await city.parts.snapshots.of(driver("d1"))
    assert (snapshot["trip"], snapshot["driver"]["trip_id"]) == (None, None)
    assert (await city.act(driver("d1"), "accept", await city.trip())).status == 200


async def test_going_offline_never_releases_another_driver_s_trip(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    await take(city, "d1", trip)
    replica = await StaleReplica.of(city)
    assert (await city.act(driver("d1"), "cancel", trip)).status == 200
    await take(city, "d2", trip)
    await replica.take_over()
    assert (await city.available("d1", is_online=False)).status == 200
    assert (await city.row(trip))["driver_id"] == "d2"
    assert (await city.act(driver("d2"), "arrive", trip)).status == 200


async def test_a_wrong_bond_is_no_reason_to_release(city: City) -> None:
    """The script sees that the trip is another driver's, and Postgres is asked."""
    await city.online("d1", "d2")
    trip = await city.trip()
    await take(city, "d2", trip)
    await city.redis("HSET", city.keys(trip).driver("d1"), "trip_id", trip)
    assert (await city.available("d1", is_online=False)).status == 200
    assert (await city.row(trip))["driver_id"] == "d2"
    assert (await city.hash(trip))["driver_id"] == "d2"


async def test_a_trip_whose_cancellation_was_lost_is_offered_to_nobody(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    replica = await StaleReplica.of(city)
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    await replica.take_over()
    assert (await city.parts.live.offers.claim_waves(city.keys(trip))).trip_ids == []
    assert code_of(await city.act(driver("d1"), "accept", trip)) == "trip_not_pending"


async def test_lost_availability_and_vehicles_come_back(city: City) -> None:
    place = (40.7559, -73.9864)
    await city.online("d1", "d2", "d3", location=place)
    replica = await StaleReplica.of(city)
    await city.available("d1", vehicle_type="van")
    await city.available("d2", is_online=False)
    await city.available("d3", availability_status="unavailable")
    await city.online("d4", location=place)
    await city.parts.positions.save()
    await replica.take_over()
    keys = city.keys()
    assert await city.redis("ZRANGE", keys.geo("car"), 0, -1) == ["d4"]
    assert await city.redis("ZRANGE", keys.geo("van"), 0, -1) == ["d1"]
    assert await city.redis("EXISTS", keys.driver("d2")) == 0
    trip = await city.trip()
    assert code_of(await city.act(driver("d2"), "accept", trip)) == "driver_not_online"
    assert code_of(await city.act(driver("d3"), "accept", trip)) == "driver_not_available"


async def test_what_postgres_does_not_know_survives(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    await take(city, "d1", trip)
    lost = await city.act(driver("d2"), "accept", trip, "k1")
    keys = city.keys()
    await city.redis("ZADD", keys.present, 4_000_000_000_000, "driver:d1")
    kept = {name for name in await city.redis("KEYS", "*") if ":limit:" in name}
    assert kept
    replica = await StaleReplica.of(city)
    await replica.take_over()
    assert kept <= set(await city.redis("KEYS", "*"))
    assert await city.redis("ZSCORE", keys.present, "driver:d1") == "4000000000000"
    # Who is online is present for a while: their server may tell of them later.
    assert await city.redis("ZCARD", keys.present) == 2
    again = await city.act(driver("d2"), "accept", trip, "k1")
    assert (again.replayed, again.body) == (True, lost.body)


async def test_an_offer_s_past_comes_back(city: City) -> None:
    """Who declined, who gave back, and which wave was the last."""
    await city.online("d1", "d2")
    trip = await city.trip()
    await take(city, "d1", trip, "cancel")
    assert (await city.act(driver("d2"), "decline", trip)).status == 200
    await city.postgres.execute(
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at) VALUES ($1, 'd9', 7, now())",
        trip,
    )
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    assert set(await city.redis("SMEMBERS", city.keys(trip).barred(trip))) == {"d1", "d2"}
    assert (await city.hash(trip))["wave"] == "7"


async def test_the_latest_known_place_stays(city: City) -> None:
    await city.online("d1", location=(40.7559, -73.9864))
    replica = await StaleReplica.of(city)
    await replica.take_over()
    assert await city.redis("ZRANGE", city.keys().geo("car"), 0, -1) == ["d1"]


async def test_lost_events_are_heard_once_more_and_in_order(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    replica = await StaleReplica.of(city)
    await take(city, "d1", trip, "arrive", "start", "complete")
    other = await city.trip()
    await city.act(rider("rider"), "cancel", other)
    await replica.take_over()
    events = await city.events()
    assert [event for event in events if event[1] == trip] == [
        ("created", trip, 0), ("accepted", trip, 1), ("arrived", trip, 2), ("started", trip, 3),
        ("completed", trip, 4),
    ]  # fmt: skip
    assert [event for event in events if event[1] == other] == [
        ("created", other, 0), ("cancelled", other, 1),
    ]  # fmt: skip


async def test_another_redis_is_noticed_with_the_first_call_of_a_connection(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    replica = await StaleReplica.of(city)
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    await replica.take_over(notice=False)
    connection = city.parts.live.pipeline._connection
    assert connection is not None
    await connection.connection.disconnect(nowait=True)
    async with asyncio.timeout(5):
        while connection.is_open:
            await asyncio.sleep(0)
    assert code_of(await city.act(driver("d1"), "accept", trip)) == "trip_not_pending"


async def test_a_lock_that_was_lost_is_not_let_go(city: City) -> None:
    keys, state = city.keys(), city.parts.live.state
    assert await state.begin_loading(keys, "mine")
    await city.redis("SET", keys.loading, "another's")
    assert not await state.end_loading(keys, "mine")
    assert await city.redis("GET", keys.loading) == "another's"


async def test_other_zones_do_not_wait_for_a_zone_that_is_loaded(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = Zones([Zone("default"), Zone("north")])
    async with open_city(redis_url, database_url, zones=zones) as city:
        state = city.parts.live.state
        drop, goes_on = state.drop_zone, asyncio.Event()

        async def slow_drop(keys: object) -> dict[str, Fix]:
            if keys is keys_of("default"):
                await goes_on.wait()
            return await drop(keys)  # type: ignore[arg-type]

        monkeypatch.setattr(type(state), "drop_zone", lambda _, keys: slow_drop(keys))
        for name in ("default", "north"):
            await city.redis("DEL", keys_of(name).epoch)
        async with asyncio.timeout(5):
            await city.reconcile().run()
            await city.parts.rehydration.warm("north")
            assert await state.read_epoch(keys_of("north")) is not None
            assert await state.read_epoch(keys_of("default")) is None
            goes_on.set()
            await city.parts.rehydration.warm("default")


async def test_a_trip_that_ended_does_not_begin_again_with_the_events_that_were_lost(city: City) -> None:
    """Its end was told to the new Redis, and what came before was told to the old one alone."""
    await city.online("d1")
    trip = await city.trip()
    await take(city, "d1", trip, "arrive", "start", "complete")
    for entry, _ in (await city.redis("XRANGE", city.keys().events, "-", "+"))[1:-1]:
        await city.redis("XDEL", city.keys().events, entry)
    replica = await StaleReplica.of(city)
    await replica.take_over()
    assert (await city.hash(trip)).get("current_status", "completed") == "completed"
    assert {version for _, _, version in await city.events()} == {0, 1, 2, 3, 4}
    snapshot = await city.parts.snapshots.of(driver("d1"))
    assert (snapshot["trip"], snapshot["driver"]["trip_id"]) == (None, None)
    assert (await city.act(driver("d1"), "accept", await city.trip())).status == 200


async def test_a_trip_that_is_created_while_its_zone_is_dropped_keeps_its_wave(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settle comes after the keys were looked for, and before the zone's waves are dropped."""
    is_settling, goes_on = asyncio.Event(), asyncio.Event()
    settle, scan = Settler.settle, Pipeline.scan

    async def settle_late(*args: Any) -> bool:
        is_settling.set()
        await goes_on.wait()
        return await settle(*args)

    async def scan_and_settle(pipeline: Pipeline, key: str, prefix: str) -> AsyncIterator[list[str]]:
        async for page in scan(pipeline, key, prefix):
            yield page
        goes_on.set()
        await asyncio.wait([creation])

    monkeypatch.setattr(Settler, "settle", settle_late)
    creation = asyncio.create_task(city.trip())
    await is_settling.wait()
    await city.redis("FLUSHDB")
    await city.redis("SET", city.keys().filled, 1)  # its keys are looked for
    monkeypatch.setattr(Pipeline, "scan", scan_and_settle)
    await city.parts.rehydration.warm("default")
    trip = await creation
    assert (await city.parts.live.offers.claim_waves(city.keys(trip))).trip_ids == [trip]
