"""Queues on real engines: offers go by arrival, under every policy, and no loss of Redis turns a queue over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import shapely

from dispatcher.areas import Area
from dispatcher.background import queue_numbers_job
from dispatcher.core.zones import Matching, Queue, Wave, Zone, Zones
from dispatcher.embedded.valkey import Valkey
from dispatcher.operations.fsck import fsck
from dispatcher.operations.workbench import Workbench
from tests.harness.services import City, driver, open_city
from tests.service import test_redis_away as redis_away

WAVES = (Wave(3, 1_500, 5), Wave(3, 6_000, 5), Wave(3, 6_000, 60))
#: About 111 m of latitude.
STEP = 0.001
#: The queue's place reaches from step 0 to step 100 (11 km), further than any wave.
PLACE = Area(shapely.box(-73.981, 40.75, -73.979, 40.85))


def zone(dispatch: Any = "nearest", *, absence_s: float = 300.0, name: str = "default") -> Zone:
    matching = Matching(dispatch, every_s=0.5, head_start_s=0.3)
    return Zone(name, waves=WAVES, matching=matching, queues=(Queue("jfk", PLACE, absence_s),))


def at(steps: float) -> tuple[float, float]:
    return 40.75 + steps * STEP, -73.98


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, zones=Zones([zone()])) as opened:
        yield opened


async def drivers(city: City, **places: float) -> None:
    """Drivers go online one after the other, each at so many steps."""
    for name, steps in places.items():
        await city.online(name, location=at(steps))
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")


async def offered(city: City, trip_id: str) -> set[str]:
    return set(await city.redis("ZRANGE", city.keys().offers(trip_id), 0, -1))


async def run_until_offered(city: City, trip: str, *, drivers: int) -> set[str]:
    async with asyncio.timeout(20):
        while len(found := await offered(city, trip)) < drivers:
            wait_ms = await city.parts.offers.run_due("default")
            await asyncio.sleep(max(0.005, min(wait_ms or 20, 20) / 1000))
    return found


async def number(city: City) -> list[str]:
    """Who stands in the queue, once it has been numbered."""
    (only,) = [name for name in city.parts.zones.names() if queue_numbers_job(city.parts, name)]
    found = city.parts.zones.get(only)
    assert found is not None
    await city.parts.queues.number(found)
    line: list[str] = await city.redis("ZRANGE", city.keys().queue("jfk", "car"), 0, -1)
    return line


async def position(city: City, name: str) -> int | None:
    place = (await city.parts.snapshots.of(driver(name)))["queue"]
    return place and place["position"]


@pytest.mark.parametrize("dispatch", ["nearest", "matched"])
async def test_offers_go_by_arrival_and_not_by_distance(
    redis_url: str, database_url: str, dispatch: str
) -> None:
    async with open_city(redis_url, database_url, zones=Zones([zone(dispatch)])) as city:
        await drivers(city, far=60, near=1, mid=30, outside=-1)
        trip = await city.trip(pickup=at(0))
        assert await run_until_offered(city, trip, drivers=1) == {"far"}, "who came first is asked alone"
        assert await run_until_offered(city, trip, drivers=3) == {"far", "near", "mid"}
        await city.parts.effects.offer_log.save(city.parts.ledger.database)
        rows = await city.parts.reads.offers(trip)
        asked = {row["driver_id"]: (row["wave"], row["score"]) for row in rows}
        assert asked == {
            name: (1, {"queue": "jfk", "position": i})
            for i, name in enumerate(("far", "near", "mid"), start=1)
        }
        assert city.parts.matched_rounds.rounds == 0, "there is nothing to decide on together"


async def test_who_declines_keeps_the_place_and_the_next_one_is_asked(city: City) -> None:
    await drivers(city, d1=3, d2=2, d3=1)
    trip = await city.trip(pickup=at(0))
    assert await run_until_offered(city, trip, drivers=1) == {"d1"}
    assert (await city.act(driver("d1"), "decline", trip)).status == 200
    assert await run_until_offered(city, trip, drivers=1) == {"d2"}
    assert (await city.act(driver("d2"), "accept", trip)).status == 200
    assert await number(city) == ["d1", "d3"]
    assert [await position(city, name) for name in ("d1", "d2", "d3")] == [1, None, 2]


async def test_an_empty_queue_asks_the_nearest(city: City) -> None:
    await drivers(city, d1=-1, d2=-2)
    trip = await city.trip(pickup=at(0))
    await city.parts.offers.run_due("default")
    assert await offered(city, trip) == {"d1", "d2"}, "at once and together"


async def test_a_queue_that_nobody_of_can_be_asked_does_not_hold_a_trip_up(city: City) -> None:
    await drivers(city, d1=2, d2=-1)
    trip = await city.trip(pickup=at(0))
    await run_until_offered(city, trip, drivers=1)
    await city.act(driver("d1"), "decline", trip)
    assert await run_until_offered(city, trip, drivers=1) == {"d2"}
    # A trip elsewhere is not the queue's.
    other = await city.trip(pickup=at(-5))
    assert await run_until_offered(city, other, drivers=2) == {"d1", "d2"}


async def test_each_driver_is_asked_for_one_trip_of_the_queue_at_a_time(city: City) -> None:
    await drivers(city, d1=1, d2=2)
    seconds, _ = await city.redis("TIME")
    for i in range(4):  # offers from elsewhere, more than a driver may hold
        ends_ms = int(seconds) * 1000 + 30_000
        await city.redis("ZADD", city.keys().inbox("d1"), ends_ms, f"default_other{i}")
    first, second = [await city.trip(pickup=at(0), customer=f"c{i}") for i in range(2)]
    for trip in (first, second):
        await run_until_offered(city, trip, drivers=1)
    saw = await city.parts.explanation.why(second, "d1")
    assert (await offered(city, first), await offered(city, second)) == ({"d1"}, {"d2"})
    refusing = [row["filter"] for row in saw["filters"] if row["passes"] is False]
    assert refusing == ["asked_in_queue"]
    assert (await city.act(driver("d1"), "decline", first)).status == 200
    third = await city.trip(pickup=at(0), customer="c9")
    assert await run_until_offered(city, third, drivers=1) == {"d1"}, "it is their turn again"


async def test_a_place_is_lost_to_an_absence(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, zones=Zones([zone(absence_s=0.4)])) as city:
        await drivers(city, d1=2)
        assert await number(city) == ["d1"]
        await city.parts.positions.take("d1", [(*at(-3), None)])
        async with asyncio.timeout(10):
            while await number(city):
                await asyncio.sleep(0.05)
        assert await position(city, "d1") is None
        await city.parts.queue_log.save()
        saved = "SELECT queue FROM driver_details WHERE user_id = 'd1'"
        assert await city.postgres.fetchval(saved) is None


async def test_an_emptied_redis_gives_nobodys_place_away(city: City) -> None:
    names = [f"d{i}" for i in range(6)]
    await drivers(city, **{name: 50 - i for i, name in enumerate(names)})
    await city.available("d2", availability_status="unavailable")
    await number(city)
    await asyncio.gather(city.parts.queue_log.save(), city.parts.positions.save())
    assert await city.postgres.fetchval("SELECT count(queue) FROM driver_details") == 5
    # Nobody tells Postgres of the place that d4 loses by this trip, as while Redis is away.
    trip = await city.trip(pickup=at(-50))
    for action in ("accept", "arrive", "start", "complete"):
        assert (await city.act(driver("d4"), action, trip)).status == 200
    await city.redis("FLUSHALL")
    await city.parts.rehydration.warm("default")
    assert await number(city) == ["d0", "d1", "d3", "d5"]
    await city.parts.positions.take("d3", [(*at(7), None)])
    await city.available("d2", availability_status="available", location=at(4))
    assert await number(city) == ["d0", "d1", "d3", "d5", "d2"]
    trip = await city.trip(pickup=at(0))
    for name in names:
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")
    assert await run_until_offered(city, trip, drivers=1) == {"d0"}


async def test_a_queue_rests_while_redis_is_away_and_comes_back_without_who_drove_meanwhile(
    data_dir: Path, database_url: str
) -> None:
    valkey = Valkey(data_dir / "valkey")
    valkey.start()
    try:
        async with redis_away.open_server(valkey, database_url, zones=Zones([zone()])) as city:
            await drivers(city, d1=1, d2=2, d3=3)
            await asyncio.gather(city.parts.queue_log.save(), city.parts.positions.save())
            redis_away.kill(valkey)
            trip = await city.trip(pickup=at(0))
            await redis_away.take_all_steps(city, "d1", trip)
            assert city.parts.authorities.degraded() == ["default"]
            assert await position(city, "d2") is None
            job = queue_numbers_job(city.parts, "default")
            assert job is not None
            await job.run()
            await redis_away.restart(valkey)
            await redis_away.give_back(city)
            assert await number(city) == ["d2", "d3"]
            assert await position(city, "d2") == 1
    finally:
        valkey.stop()


async def test_a_queue_that_there_is_no_more_is_forgotten(
    city: City, redis_url: str, database_url: str
) -> None:
    await drivers(city, d1=1)
    await city.parts.queue_log.save()
    await city.redis("FLUSHALL")
    async with open_city(redis_url, database_url) as without:
        assert (await without.parts.snapshots.of(driver("d1")))["queue"] is None
        assert not await without.redis("EXISTS", city.keys().queue("jfk", "car"))


async def test_the_words_of_a_server_that_was_slow_do_not_count(city: City) -> None:
    await drivers(city, d1=1)
    log = city.parts.queue_log
    await log.save()
    row = "SELECT queue, queued_at FROM driver_details WHERE user_id = 'd1'"
    _, arrived = await city.postgres.fetchrow(row)
    log.left(["d1"], round(arrived.timestamp() * 1000) - 1)
    await log.save()
    assert (await city.postgres.fetchrow(row))["queue"] == "jfk"
    assert await log.save() == 0


async def test_why_says_where_a_driver_stands(city: City) -> None:
    await drivers(city, d1=70, d2=1, d3=-1)
    trip = await city.trip(pickup=at(0))

    async def why(name: str) -> dict[str, tuple[bool | None, str]]:
        found = await city.parts.explanation.why(trip, name)
        return {row["filter"]: (row["passes"], row["saw"]) for row in found["filters"]}

    first, second, outside = [await why(name) for name in ("d1", "d2", "d3")]
    assert first["not_in_queue"] == (True, "number 1 of 2 in the queue jfk")
    assert first["out_of_reach"] == (True, "7.8 km away, and the queue is asked however far")
    assert second["not_in_queue"] == (True, "number 2 of 2 in the queue jfk")
    assert second["no_place_left"] == (True, "0 of 3 offers are out, 1 go to earlier drivers")
    assert outside["not_in_queue"] == (True, "not in the queue jfk, whose 2 drivers are asked first")
    assert outside["no_place_left"] == (True, "0 of 3 offers are out, 2 go to earlier drivers")
    await run_until_offered(city, trip, drivers=3)
    assert (await why("d1"))["on_offer"][0] is False


async def test_places_that_differ_are_found_and_repaired(city: City) -> None:
    await drivers(city, d1=1, d2=2, d3=-3)
    await city.parts.queue_log.save()
    keys, long_ago_ms = city.keys(), 1_700_000_000_000
    set_place = "UPDATE driver_details SET queue = $2, queued_at = to_timestamp($3::bigint / 1000) WHERE user_id = $1"
    await city.redis("ZREM", keys.queue("jfk", "car"), "d1")
    await city.redis("HSET", keys.driver("d2"), "queued_at", long_ago_ms)
    await city.redis("ZADD", keys.queue("jfk", "car"), long_ago_ms, "d2")
    await city.redis("HSET", keys.driver("d3"), "updated_at", 0, "free_since", long_ago_ms)
    await city.postgres.execute(set_place, "d3", "jfk", long_ago_ms)
    parts = city.parts
    bench = Workbench(
        parts.settings, parts.zones, parts.live, parts.ledger, parts.authorities, parts.rehydration
    )
    found = (await fsck(bench, ["default"], repairs=True))["found"]
    queue = {thing["subject"]: thing for thing in found if thing["kind"] == "queue"}
    assert {name: thing["repaired"] for name, thing in queue.items()} == dict.fromkeys(
        ("d1", "d2", "d3"), True
    )
    assert await number(city) == ["d2", "d1"]
    rows = await city.postgres.fetch("SELECT queue FROM driver_details ORDER BY user_id")
    assert [row["queue"] for row in rows] == ["jfk", "jfk", None]


async def test_one_of_all_servers_numbers_a_zones_queues(
    city: City, redis_url: str, database_url: str
) -> None:
    await drivers(city, d1=1)
    async with open_city(redis_url, database_url, zones=city.parts.zones) as other:
        jobs = [queue_numbers_job(c.parts, "default") for c in (city, other)]
        for turn in (jobs, jobs[::-1]):
            await city.redis("DEL", city.keys().queue_look)
            for job in turn:
                assert job is not None
                await job.run()
            counts = [c.parts.queues.counts()["default", "jfk"] for c in (city, other)]
            assert counts == ([1, 0] if turn is jobs else [0, 1])
        assert queue_numbers_job(other.parts, "nowhere") is None


async def test_a_crowd_that_arrives_together_stands_in_one_order_and_each_trip_has_one_winner(
    redis_url: str, database_url: str
) -> None:
    """Two servers take the fixes of one crowd; all drivers then race for what they are offered."""
    zones = Zones([zone("auto")])
    async with (
        open_city(redis_url, database_url, zones=zones) as one,
        open_city(redis_url, database_url, zones=zones) as other,
    ):
        names = [f"d{i}" for i in range(30)]
        await one.online(*names)
        for name in names:
            await one.parts.presence.register(f"c-{name}", driver(name), None, "")
        fixes = [
            city.parts.positions.take(name, [(*at(i), None)])
            for i, name in enumerate(names)
            for city in (one, other)
        ]
        await asyncio.gather(*fixes)
        line = await number(one)
        assert sorted(line) == sorted(names)
        trips = [await one.trip(pickup=at(0), customer=f"c{i}") for i in range(6)]
        async with asyncio.timeout(30):
            while waiting := [t for t in trips if (await one.row(t))["current_status"] == "pending"]:
                await asyncio.gather(*(c.parts.offers.run_due("default") for c in (one, other)))
                for trip in waiting:
                    racing = await offered(one, trip)
                    await asyncio.gather(*(other.act(driver(n), "accept", trip) for n in racing))
        assert await one.double_assignments() == 0
        winners = {(await one.row(trip))["driver_id"] for trip in trips}
        assert len(winners) == 6
        assert winners <= set(line[:24]), "nobody was asked past those who stand before them"
        assert await number(other) == [name for name in line if name not in winners]


@pytest.mark.parametrize(
    "field", ["queue", "queued_at", "queue_until", "queue_number", "queue_trip", "the queue itself"]
)
async def test_nonsense_in_redis_costs_one_place_at_most(city: City, field: str) -> None:
    await drivers(city, d1=1, d2=2)
    keys = city.keys()
    if field == "the queue itself":
        await city.redis("DEL", keys.queue("jfk", "car"))
    else:
        await city.redis("HSET", keys.driver("d1"), field, "\x00{nonsense}:1e999")
    await city.parts.snapshots.of(driver("d1"))
    await number(city)
    for name in ("d1", "d2"):
        await city.parts.positions.take(name, [(*at(3), None)])
    assert sorted(await number(city)) == ["d1", "d2"]
    trip = await city.trip(pickup=at(0))
    await run_until_offered(city, trip, drivers=2)
    parts = city.parts
    bench = Workbench(
        parts.settings, parts.zones, parts.live, parts.ledger, parts.authorities, parts.rehydration
    )
    await fsck(bench, ["default"], repairs=True)
    assert (await city.parts.explanation.why(trip, "d1"))["verdict"]
