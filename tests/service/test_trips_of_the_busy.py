"""Who has a trip keeps it in Redis, whatever is told once more of the trips that they had before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.settle import Settler
from dispatcher.operations.fsck import fsck
from dispatcher.operations.workbench import Workbench
from dispatcher.service.outbox import Outbox
from tests.harness.services import PLACE, City, driver, open_city

ZONES = Zones([Zone("default"), Zone("north")])
RIDE = ("accept", "arrive", "start", "complete")
DRIVERS = tuple(f"d{n}" for n in range(8))


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, zones=ZONES) as opened:
        yield opened


async def _take(city: City, name: str, *actions: str, zone: str = "default") -> str:
    trip = await city.trip(zone=zone)
    for action in actions:
        assert (await city.act(driver(name), action, trip)).status == 200
    return trip


async def _drift(city: City) -> dict[str, Any]:
    """What fsck finds in both zones, by zone and kind."""
    parts = city.parts
    bench = Workbench(
        parts.settings, ZONES, parts.live, parts.ledger, parts.authorities, parts.rehydration
    )
    found: dict[str, Any] = (await fsck(bench, list(ZONES.names()), repairs=False))["drift"]
    return {zone: {kind: n for kind, n in kinds.items() if n} for zone, kinds in found.items()}


async def _lose_redis(city: City) -> None:
    """Redis is emptied, and loaded anew."""
    await city.redis("FLUSHDB")
    await _load(city)


async def _load(city: City) -> None:
    await asyncio.gather(*(city.parts.rehydration.warm(zone) for zone in ZONES.names()))


async def _shown_trip(city: City, name: str) -> str | None:
    trip = (await city.parts.snapshots.of(driver(name)))["trip"]
    return None if trip is None else trip["id"]


async def test_drivers_have_their_trips_after_redis_was_emptied(city: City) -> None:
    """Each has ended a trip before, and one has given it back."""
    await city.online(*DRIVERS, location=PLACE)
    await city.parts.positions.save()
    now: dict[str, str] = {}
    for name in DRIVERS:
        await _take(city, name, *(("accept", "cancel") if name == "d0" else RIDE))
        now[name] = await _take(city, name, "accept")
    told = await city.events()
    await _lose_redis(city)
    assert {name: await _shown_trip(city, name) for name in DRIVERS} == now
    assert await _drift(city) == {"default": {}, "north": {}}
    assert set(await city.events()) == set(told)
    assert await city.redis("ZRANGE", city.keys().geo("car"), 0, -1) == []


async def test_a_driver_has_the_trip_of_the_zone_they_came_to(city: City) -> None:
    await city.online("d1")
    await _take(city, "d1", *RIDE)
    assert (await city.available("d1", zone="north", is_online=True)).status == 200
    trip = await _take(city, "d1", "accept", zone="north")
    await _lose_redis(city)
    assert await _shown_trip(city, "d1") == trip
    assert await city.redis("EXISTS", keys_of("default").driver("d1")) == 0
    assert await _drift(city) == {"default": {}, "north": {}}


async def test_a_zone_whose_load_broke_off_while_it_told_is_loaded_right(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1")
    await _take(city, "d1", *RIDE)
    trip = await _take(city, "d1", "accept")
    settle, left = Settler.settle, 2

    async def settle_two(*args: Any) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("redis")
        return await settle(*args)

    await city.redis("FLUSHDB")
    monkeypatch.setattr(Settler, "settle", settle_two)
    with pytest.raises(StoreUnavailable):
        await city.parts.rehydration.warm("default")
    assert await city.parts.live.state.read_epoch(city.keys()) is None
    monkeypatch.setattr(Settler, "settle", settle)
    await _load(city)
    assert await _shown_trip(city, "d1") == trip
    assert await _drift(city) == {"default": {}, "north": {}}


async def test_a_settle_that_comes_late_leaves_the_driver_of_a_newer_trip_alone(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for Redis in its own server, and comes while the zone is loaded."""
    await city.online("d1")
    settle, late = Settler.settle, []

    async def lose(*args: Any) -> bool:
        late.append(args)
        raise StoreUnavailable("redis")

    ended = await city.trip()
    monkeypatch.setattr(Settler, "settle", lose)
    assert (await city.act(driver("d1"), "accept", ended)).status == 200
    monkeypatch.setattr(Settler, "settle", settle)
    await city.parts.coordinator.close()
    await _lose_redis(city)
    for action in RIDE[1:]:
        assert (await city.act(driver("d1"), action, ended)).status == 200
    trip = await _take(city, "d1", "accept")
    unheard = Outbox.settle_unheard

    async def settle_late_first(outbox: Outbox, keys: Keys, *args: Any, **more: Any) -> int:
        if keys is city.keys():
            await settle(*late[0])
        return await unheard(outbox, keys, *args, **more)

    monkeypatch.setattr(Outbox, "settle_unheard", settle_late_first)
    await _lose_redis(city)
    assert await _shown_trip(city, "d1") == trip
    assert await _drift(city) == {"default": {}, "north": {}}


async def test_the_missed_events_of_one_trip_leave_the_driver_of_a_newer_trip_alone(
    city: City,
) -> None:
    await city.online("d1")
    ended = await city.trip()
    before = await city.redis("HGETALL", city.keys().trip(ended))
    for action in RIDE:
        assert (await city.act(driver("d1"), action, ended)).status == 200
    trip = await _take(city, "d1", "accept")
    await city.redis("DEL", city.keys().trip(ended))
    await city.redis("HSET", city.keys().trip(ended), *before)
    await asyncio.gather(*(city.parts.rehydration.reload_trip(city.keys(), ended) for _ in range(2)))
    assert (await city.hash(ended))["current_status"] == "completed"
    assert await _shown_trip(city, "d1") == trip
    assert await _drift(city) == {"default": {}, "north": {}}
