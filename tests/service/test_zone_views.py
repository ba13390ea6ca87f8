"""A zone that operators watch: one sampler however many watch, and none when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.zone_views import ZoneViews
from tests.harness.services import PLACE, City, driver, open_city, rider
from tests.service.test_operator_reads import offer

SAMPLE_S = 0.05


class Screen:
    """A viewer that puts frames together as the console does."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.drivers: dict[str, list[Any]] = {}
        self.trips: dict[str, dict[str, Any]] = {}
        self.is_slow = False
        self._news = asyncio.Event()

    def show(self, frame: bytes) -> bool:
        if self.is_slow:
            return False
        told = orjson.loads(frame)
        assert told["type"] == "zone_view"
        if told["full"]:
            self.drivers, self.trips = {}, {}
        self.drivers |= told["drivers"]
        self.trips |= {trip["id"]: trip for trip in told["trips"]}
        for name in told["drivers_gone"]:
            del self.drivers[name]
        for name in told["trips_gone"]:
            self.trips.pop(name, None)
        self.frames.append(told)
        self._news.set()
        return True

    async def until(self, holds: Any) -> dict[str, Any]:
        """The first frame after which it holds."""
        async with asyncio.timeout(10):
            while not (self.frames and holds()):
                self._news.clear()
                await self._news.wait()
        return self.frames[-1]

    def states(self) -> dict[str, str]:
        return {name: row[0] for name, row in self.drivers.items()}


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


@pytest.fixture
async def views(city: City) -> AsyncIterator[ZoneViews]:
    async def health() -> tuple[bool, dict[str, Any]]:
        return True, {"redis": "ok", "postgres": "ok"}

    made = ZoneViews(
        zones=city.parts.zones, scripts=ZoneViewScripts(city.parts.live.pipeline),
        database=city.parts.ledger.database, authorities=city.parts.authorities, health=health, fix_age_s=60, sample_s=SAMPLE_S,
    )  # fmt: skip
    yield made
    await made.close()


async def test_a_trip_from_its_creation_to_its_end(city: City, views: ZoneViews) -> None:
    await city.online("d1", "d2", location=PLACE)
    screen = Screen()
    views.watch("default", screen)
    first = await screen.until(lambda: screen.states() == {"d1": "free", "d2": "free"})
    assert first["full"]
    trip = await city.trip()
    await screen.until(lambda: screen.trips.get(trip, {}).get("current_status") == "pending")
    await offer(city, "d1")
    offered = await screen.until(lambda: screen.states()["d1"] == "offered")
    assert offered["offers"] == {trip: ["d1"]}
    await screen.until(lambda: screen.trips[trip]["wave"] == 1)
    for action, state in (("accept", "to_pickup"), ("arrive", "at_pickup"), ("start", "riding")):
        assert (await city.act(driver("d1"), action, trip)).status == 200
        await screen.until(lambda: screen.states()["d1"] == state)  # noqa: B023
        assert screen.drivers["d1"][3] == trip
    assert (await city.act(driver("d1"), "complete", trip)).status == 200
    last = await screen.until(lambda: screen.states()["d1"] == "free")
    assert screen.trips[trip]["current_status"] == "completed"
    events = [event["event"] for frame in screen.frames for event in frame["events"]]
    assert events == ["created", "accepted", "arrived", "started", "completed"]
    figures = last["figures"]
    assert figures["ended"] == {"completed": 1}
    assert figures["accepts_per_s"] > 0
    assert figures["wait_p50_s"] >= 0
    assert (figures["engines"]["redis"], figures["drift"]) == ("ok", 0)


async def test_frames_tell_only_what_has_changed(city: City, views: ZoneViews) -> None:
    await city.online("d1", "d2", location=PLACE)
    screen = Screen()
    views.watch("default", screen)
    await screen.until(lambda: len(screen.drivers) == 2)
    seen = len(screen.frames)
    await screen.until(lambda: len(screen.frames) > seen + 2)
    assert all(not f["drivers"] and not f["trips"] and not f["full"] for f in screen.frames[seen:])
    await city.available("d2", location=(PLACE[0] + 0.01, PLACE[1]))
    moved = await screen.until(lambda: screen.drivers["d2"][1] != PLACE[0])
    assert list(moved["drivers"]) == ["d2"]
    await city.available("d1", is_online=False)
    await screen.until(lambda: list(screen.drivers) == ["d2"])


async def test_one_sampler_for_all_and_none_for_nobody(
    city: City, views: ZoneViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = 0
    read = ZoneViewScripts.seen_drivers

    async def counted(*given: Any) -> Any:
        nonlocal samples
        samples += 1
        return await read(*given)

    monkeypatch.setattr(ZoneViewScripts, "seen_drivers", counted)
    screens = [Screen() for _ in range(20)]
    for screen in screens:
        views.watch("default", screen)
    for screen in screens:
        await screen.until(lambda: len(screen.frames) >= 5)  # noqa: B023
    assert views.viewers() == 20
    assert samples <= max(len(screen.frames) for screen in screens) + 1
    for screen in screens:
        views.unwatch(screen)
    assert views.viewers() == 0
    before = samples
    await asyncio.sleep(4 * SAMPLE_S)  # nothing is awaited here: nothing is to happen
    assert samples <= before + 1


async def test_who_could_not_take_a_frame_gets_the_whole_picture(city: City, views: ZoneViews) -> None:
    await city.online("d1", location=PLACE)
    quick, slow = Screen(), Screen()
    for screen in (quick, slow):
        views.watch("default", screen)
        await screen.until(lambda: len(screen.drivers) == 1)  # noqa: B023
    slow.is_slow = True
    await city.online("d2", location=PLACE)
    await quick.until(lambda: len(quick.drivers) == 2)
    slow.is_slow = False
    told = await slow.until(lambda: len(slow.drivers) == 2)
    assert told["full"]


async def test_what_the_stream_has_not_told_is_found(
    city: City, views: ZoneViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.service.zone_views._LOOK_S", 0.0)
    trip = await city.trip()
    await city.redis("DEL", city.keys().events)
    screen = Screen()
    views.watch("default", screen)
    await screen.until(lambda: trip in screen.trips)
    assert (await city.act(rider("rider"), "cancel", trip)).status == 200
    await screen.until(lambda: screen.trips.get(trip, {}).get("current_status") != "pending")
    # A change that Redis never hears of is drift.
    other = await city.trip()
    await screen.until(lambda: other in screen.trips)
    await city.postgres.execute(
        "UPDATE trip_requests SET version = version + 1, updated_at = now() - interval '1 minute' WHERE id = $1",
        other,
    )
    await screen.until(lambda: screen.frames[-1]["figures"]["drift"] == 1)


async def test_an_engine_that_is_away_is_said_and_survived(
    city: City, views: ZoneViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1", location=PLACE)
    screen = Screen()
    views.watch("default", screen)
    await screen.until(lambda: len(screen.drivers) == 1)

    async def away(*_: Any) -> Any:
        raise StoreUnavailable("redis")

    with monkeypatch.context() as patch:
        patch.setattr(ZoneViewScripts, "seen_drivers", away)
        patch.setattr(
            views._samplers["default"], "_health", lambda: _answered({"redis": "away", "postgres": "ok"})
        )
        await screen.until(lambda: screen.frames[-1]["figures"]["engines"].get("redis") == "away")
        assert list(screen.drivers) == ["d1"]
    await screen.until(lambda: screen.frames[-1]["figures"]["engines"].get("redis") == "ok")


async def _answered(details: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    return False, details


async def test_only_zones_that_there_are(views: ZoneViews) -> None:
    with pytest.raises(Refusal):
        views.watch("nowhere", Screen())
    assert views.viewers() == 0
