"""Where work is waiting, from the stream and the drivers of a real zone, sampled for all who ask."""

from __future__ import annotations

import asyncio
import secrets
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

#: Of what drivers are shown.
WINDOW_MS = 300_000


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


def heat_of(city: City, node: str = "n1", *, sample_s: float = 0.0, clock: Any = None) -> HeatMaps:
    scripts = ZoneViewScripts(city.parts.live.pipeline)
    return HeatMaps(
        zones=city.parts.zones, scripts=scripts, clock=clock or city.parts.live.comparison, node=node,
        fix_age_s=1_000, sample_s=sample_s,
    )  # fmt: skip


async def counts(heat: HeatMaps) -> tuple[int, int, int]:
    """Trips asked for, those that wait, and free drivers, over all cells of a fresh sample."""
    await heat._zones["default"].sample.renew()
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
    await heat.close()


class Clock:
    """Redis' clock, at a time of the test's choice."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    async def read_clock(self, _: Any) -> tuple[int, str]:
        return self.at_ms, ""


async def at_times(city: City, window: int, times: dict[str, int]) -> None:
    """Has the zone's events told anew, each so many windows after that one as `times` has for its trip."""
    entries = await city.redis("XRANGE", city.keys().events, "-", "+")
    told = sorted((times[orjson.loads(f[1])["trip"]["id"]], n, f[1]) for n, (_, f) in enumerate(entries))
    await city.redis("DEL", city.keys().events)
    for windows, n, text in told:
        id_ = f"{(window + windows) * WINDOW_MS + n}-1"
        await city.redis("XADD", city.keys().events, id_, "event", text)


async def test_drivers_see_whole_windows_each_counted_once(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1", "d2", location=PLACE)
    before, after = await city.trip(customer="before"), await city.trip(customer="after")
    trips = [await city.trip(customer=f"c{i}") for i in range(9)]
    for i in (7, 8):
        assert (await city.act(rider(f"c{i}"), "cancel", trips[i])).status == 200
    seconds, _ = await city.redis("TIME")
    window = int(seconds) * 1000 // WINDOW_MS
    await at_times(city, window, {before: -1, after: 1} | dict.fromkeys(trips, 0))
    clock = Clock((window + 1) * WINDOW_MS + 100)
    heat = heat_of(city, clock=clock)
    monkeypatch.setattr(secrets, "randbits", lambda _: 0)
    shown = await heat.of("default", in_detail=False)
    (cell,) = shown["cells"]
    assert (cell["asked"], cell["waiting"], cell["free_drivers"]) == (9, 7, 2)
    assert shown["window_s"] * 1000 == WINDOW_MS
    text = orjson.dumps(shown).decode()
    assert not any(word in text for word in ("c0", "d1", *trips))
    # Whoever asks again, or elsewhere, learns nothing new, whatever has happened and whatever the noise.
    monkeypatch.undo()
    assert (await city.act(driver("d1"), "accept", trips[0])).status == 200
    clock.at_ms += WINDOW_MS - 200
    other = heat_of(city, "n2", clock=clock)
    for each in (heat, other):
        await each._zones["default"].shown.renew()
        assert await each.of("default", in_detail=False) == shown
    # In the next window none of these trips is counted again.
    clock.at_ms += WINDOW_MS
    monkeypatch.setattr(secrets, "randbits", lambda _: 0)
    await other._zones["default"].shown.renew()
    assert (await other.of("default", in_detail=False))["cells"] == []
    await asyncio.gather(heat.close(), other.close())


async def test_servers_that_make_a_picture_at_once_show_the_same(city: City) -> None:
    await city.online("d1", location=PLACE)
    for i in range(12):
        await city.trip(customer=f"c{i}")
    entries = await city.redis("XRANGE", city.keys().events, "-", "+")
    clock = Clock((int(entries[-1][0].partition("-")[0]) // WINDOW_MS + 1) * WINDOW_MS)
    servers = [heat_of(city, f"n{i}", clock=clock) for i in range(4)]
    shown = await asyncio.gather(*(heat.of("default", in_detail=False) for heat in servers))
    assert all(each == shown[0] for each in shown)
    assert sum(heat._zones["default"].samples for heat in servers) > 1, "though several have made one"
    await asyncio.gather(*(heat.close() for heat in servers))


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
    # One for operators, and one for drivers.
    assert "dispatcher_heat_samples_total 2.0" in texts[0]
    assert "dispatcher_heat_samples_total 1.0" in texts[1]
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
    monkeypatch.setattr(ZoneViewScripts, "kept_heat", fail)
    for _ in range(3):
        assert (await heat.of("default", in_detail=False))["cells"] == []
        await asyncio.sleep(0)
    with pytest.raises(Refusal) as refused:
        await heat.of("nowhere", in_detail=True)
    assert refused.value.code == "invalid_zone"
    await heat.close()


@pytest.mark.parametrize(
    ("role", "resolution", "window_s"), [(Role.DRIVER, 7, 300), (Role.ADMIN, 8, 600)]
)
async def test_drivers_see_districts_and_operators_more(
    city: City, role: Role, resolution: int, window_s: int
) -> None:
    found = await city.parts.heat.of("default", in_detail=role is Role.ADMIN)
    assert (found["resolution"], found["zone"], found["window_s"]) == (resolution, "default", window_s)


async def test_events_that_are_told_twice_or_late_count_once(city: City) -> None:
    trip = await city.trip()
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    entries = await city.redis("XRANGE", city.keys().events, "-", "+")
    await city.redis("DEL", city.keys().events)
    for text in [fields[1] for _, fields in (*entries[::-1], *entries)]:
        await city.redis("XADD", city.keys().events, "*", "event", text)
    assert await counts(heat_of(city)) == (1, 0, 0)


async def test_a_picture_is_made_once_a_sample_and_dropped_when_nobody_asks(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.trip()
    heat = heat_of(city, sample_s=60.0)
    for in_detail in (True, False):
        first, second = [await heat.of("default", in_detail=in_detail) for _ in range(2)]
        assert first["cells"] is second["cells"]
    of_zone = heat._zones["default"]
    assert of_zone._trips
    monkeypatch.setattr("dispatcher.service.heat.STALE_S", 0.0)
    monkeypatch.setattr("dispatcher.service.lasting.STALE_S", 0.0)
    await of_zone.sample.renew()
    async with asyncio.timeout(10):
        while of_zone._trips or of_zone.sample._last is not None:
            await asyncio.sleep(0)
    monkeypatch.undo()
    assert (await heat.of("default", in_detail=True))["cells"], "read anew"
    await heat.close()
