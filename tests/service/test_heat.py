"""Where work is waiting, from the stream and the drivers of a real zone, sampled for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.actors import Role
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.observe.metrics import Metrics
from dispatcher.service.heat import HeatMaps
from tests.harness.services import PLACE, City, driver, open_city, rider


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


def heat_of(city: City, node: str = "n1", *, sample_s: float = 0.0) -> HeatMaps:
    scripts = ZoneViewScripts(city.parts.live.pipeline)
    return HeatMaps(zones=city.parts.zones, scripts=scripts, node=node, fix_age_s=60, sample_s=sample_s)


async def counts(heat: HeatMaps) -> tuple[int, int, int]:
    """Trips asked for, those that wait, and free drivers, over all cells of a fresh sample."""
    await heat._zones["default"]._take()
    cells = (await heat.of("default", in_detail=True))["cells"]
    return (
        sum(cell["asked"] for cell in cells),
        sum(cell["waiting"] for cell in cells),
        sum(cell["free_drivers"] for cell in cells),
    )


async def test_trips_and_drivers_are_counted_as_they_come_and_go(city: City) -> None:
    heat = heat_of(city)
    assert await counts(heat) == (0, 0, 0)
    await city.online("d1", "d2", "d3", location=PLACE)
    await city.available("d3", availability_status="unavailable")
    trips = [await city.trip(customer=f"c{i}") for i in range(4)]
    assert await counts(heat) == (4, 4, 2)
    assert (await city.act(driver("d1"), "accept", trips[0])).status == 200
    assert (await city.act(rider("c1"), "cancel", trips[1])).status == 200
    assert await counts(heat) == (4, 2, 1)
    assert (await city.act(driver("d1"), "cancel", trips[0])).status == 200
    assert await counts(heat) == (4, 3, 2), "given back, it waits again, and was asked for once"
    shown = await heat.of("default", in_detail=False)
    (cell,) = shown["cells"]
    assert (cell["asked"], cell["waiting"], cell["free_drivers"]) == (3, 3, 2)
    text = orjson.dumps(shown).decode()
    assert not any(word in text for word in ("c0", "d1", *trips))
    await heat.close()


async def test_one_sample_answers_all_who_ask(city: City) -> None:
    await city.trip()
    heat = heat_of(city, sample_s=60)
    await asyncio.gather(*(heat.of("default", in_detail=bool(i % 2)) for i in range(50)))
    await city.trip(customer="other")
    found = await heat.of("default", in_detail=True)
    assert [cell["asked"] for cell in found["cells"]] == [1], "until the next sample"
    metrics = Metrics()
    heat.tell(metrics)
    other = heat_of(city, "n2", sample_s=60)
    await other.of("default", in_detail=True)
    told = Metrics()
    other.tell(told)
    texts = [(await each.render()).decode() for each in (metrics, told)]
    assert ["dispatcher_heat_samples_total 1.0" in text for text in texts] == [True, True]
    scarce = ['dispatcher_scarce_cells{zone="default"} 1.0' in text for text in texts]
    assert scarce == [True, False], "one of all servers tells it"
    await asyncio.gather(heat.close(), other.close())


async def test_a_zone_that_cannot_be_read_says_so_and_the_last_sample_lasts_a_while(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    heat = heat_of(city)

    async def fail(*_: Any, **__: Any) -> list[str]:
        raise StoreUnavailable("redis")

    monkeypatch.setattr(ZoneViewScripts, "seen_drivers", fail)
    with pytest.raises(StoreUnavailable):
        await heat.of("default", in_detail=False)
    monkeypatch.undo()
    assert (await heat.of("default", in_detail=False))["cells"] == []
    monkeypatch.setattr(ZoneViewScripts, "seen_drivers", fail)
    for _ in range(3):
        assert (await heat.of("default", in_detail=False))["cells"] == []
        await asyncio.sleep(0)
    with pytest.raises(Refusal) as refused:
        await heat.of("nowhere", in_detail=True)
    assert refused.value.code == "invalid_zone"
    await heat.close()


@pytest.mark.parametrize(("role", "resolution"), [(Role.DRIVER, 7), (Role.ADMIN, 8)])
async def test_drivers_see_districts_and_operators_more(city: City, role: Role, resolution: int) -> None:
    found = await city.parts.heat.of("default", in_detail=role is Role.ADMIN)
    assert (found["resolution"], found["zone"], found["window_s"]) == (resolution, "default", 600)


async def test_events_that_are_told_twice_or_late_count_once(city: City) -> None:
    trip = await city.trip()
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    entries = await city.redis("XRANGE", city.keys().events, "-", "+")
    await city.redis("DEL", city.keys().events)
    for text in [fields[1] for _, fields in (*entries[::-1], *entries)]:
        await city.redis("XADD", city.keys().events, "*", "event", text)
    assert await counts(heat_of(city)) == (1, 0, 0)
