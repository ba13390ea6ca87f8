"""Rounds of matching on real engines: who is asked first, that a zone has one round, and what stops none."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.core.zones import Matching, Wave, Zone, Zones
from dispatcher.live.offers import DueWaves
from dispatcher.matching.model import Score
from dispatcher.operations.explain import explained_lines
from dispatcher.service import drivers_around, matched_rounds
from dispatcher.service.matched_rounds import MatchedRound
from dispatcher.service.well_served import WellServed
from tests.harness.services import City, driver, open_city

WAVES = (Wave(2, 1_500, 5), Wave(3, 6_000, 5), Wave(3, 6_000, 60))
EVERY_S = 0.5
#: About 111 m of latitude.
STEP = 0.001


def zones(dispatch: Any = "matched", **more: Any) -> Zones:
    usual = {"every_s": EVERY_S, "head_start_s": 0.3}
    return Zones([Zone("default", waves=WAVES, matching=Matching(dispatch, **{**usual, **more}))])


def at(steps: float) -> tuple[float, float]:
    return 40.75 + steps * STEP, -73.98


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, zones=zones()) as opened:
        yield opened


async def waits(city: City, *places: float) -> list[str]:
    return [await city.trip(pickup=at(steps)) for steps in places]


async def drivers(city: City, **places: float) -> None:
    for name, steps in places.items():
        await city.online(name, location=at(steps))
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")


async def offered(city: City, trip_id: str) -> set[str]:
    return set(await city.redis("ZRANGE", city.keys().offers(trip_id), 0, -1))


async def run_until_offered(city: City, *trips: str, drivers: int = 1) -> None:
    """Runs what is due until each of the trips is on offer to so many drivers."""
    async with asyncio.timeout(10):
        while True:
            wait_ms = await city.parts.offers.run_due("default")
            if all([len(await offered(city, trip)) >= drivers for trip in trips]):
                return
            await asyncio.sleep(max(0.005, min(wait_ms or 20, 20) / 1000))


async def test_trips_are_decided_on_together(city: City) -> None:
    """d1 is nearest to both trips; only d1 reaches the second."""
    first, second = await waits(city, 0, -12)
    await drivers(city, d1=-1, d2=9)
    await run_until_offered(city, first, second)
    assert (await offered(city, first), await offered(city, second)) == ({"d2"}, {"d1"})
    assert city.parts.matched_rounds.rounds == 1
    answer = await city.act(driver("d2"), "accept", first)
    assert answer.status == 200


async def test_a_round_considers_all_drivers_whom_any_wave_would_reach(city: City) -> None:
    """The first wave reaches 1.5 km; the matched driver is 5.6 km away."""
    (trip,) = await waits(city, 0)
    await drivers(city, d1=50)
    await city.parts.offers.run_due("default")
    assert await offered(city, trip) == {"d1"}
    assert city.parts.matched_rounds.rounds == 1
    await city.parts.effects.offer_log.save(city.parts.ledger.database)
    row = await city.postgres.fetchrow("SELECT wave, deadline - offered_at AS time FROM trip_offers")
    assert (row["wave"], row["time"].total_seconds()) == (1, WAVES[0].deadline_s)


async def test_after_the_head_start_the_wave_goes_on_to_the_next_nearest(city: City) -> None:
    (trip,) = await waits(city, 0)
    await drivers(city, d1=1, d2=2, d3=3)
    await run_until_offered(city, trip)
    assert await offered(city, trip) == {"d1"}
    await run_until_offered(city, trip, drivers=2)
    assert await offered(city, trip) == {"d1", "d2"}
    await city.parts.effects.offer_log.save(city.parts.ledger.database)
    rows = await city.postgres.fetch("SELECT driver_id, wave FROM trip_offers ORDER BY driver_id")
    assert [tuple(row) for row in rows] == [("d1", 1), ("d2", 1)], "it is one wave"
    matched, other = await city.parts.reads.offers(trip)
    assert (matched["driver_id"], other["driver_id"]) == ("d1", "d2")
    score = matched["score"]
    parts = [score[name] for name in Score._fields[1:]]
    assert score["total_s"] == pytest.approx(sum(parts), abs=0.5)
    assert score["way_s"] == pytest.approx(matched["distance_m"] * 3.6 / 22, abs=0.1)
    assert [n["driver_id"] for n in score["next"]] == ["d2", "d3"]
    page = await city.parts.operator_reads.trip_offers(trip, None, 9)
    assert [offer["score"] for offer in page["offers"]] == [score, other["score"]]
    # Who is asked after the head start has the score that the round gave them.
    assert other["score"]["way_s"] == score["next"][0]["way_s"]
    assert [n["driver_id"] for n in other["score"]["next"]] == ["d1", "d3"]
    # `why` has it of each of them, asked or not, with the others'.
    saw = {name: (await city.parts.explanation.why(trip, name))["score"] for name in ("d1", "d2", "d3")}
    assert saw["d1"] == score
    assert saw["d2"] == other["score"]
    assert saw["d3"]["way_s"] == score["next"][1]["way_s"]
    assert {n["driver_id"]: n["way_s"] for n in saw["d3"]["next"]} == {
        "d1": score["way_s"], "d2": other["score"]["way_s"],
    }  # fmt: skip
    text = explained_lines(await city.parts.explanation.why(trip, "d3"))
    assert [line.split()[0] for line in text if "way_s" in line or line.startswith("d")][1:] == [
        "d3", "d2", "d1",
    ]  # fmt: skip
    await drivers(city, far=200)
    assert (await city.parts.explanation.why(trip, "far"))["score"] is None


@pytest.mark.parametrize("first", [-1, -20])
async def test_after_a_declined_head_start_the_rest_of_the_wave_is_asked_at_once(
    city: City, first: float
) -> None:
    """However far these are: the first wave alone reaches 1.5 km."""
    (trip,) = await waits(city, 0)
    await drivers(city, d1=first, d2=21, d3=22, d4=23)
    await run_until_offered(city, trip)
    assert await offered(city, trip) == {"d1"}
    assert (await city.act(driver("d1"), "decline", trip)).status == 200
    await city.redis("HSET", city.keys().matching, "next_ms", await in_a_while_ms(city))
    await city.parts.offers.run_due("default")
    assert await offered(city, trip) == {"d2", "d3"}
    assert city.parts.matched_rounds.rounds == 1


async def test_later_waves_have_no_head_start(city: City) -> None:
    (trip,) = await waits(city, 0)
    await drivers(city, d1=1, d2=2)
    await run_until_offered(city, trip, drivers=2)
    await drivers(city, d3=3, d4=4)
    for name in ("d1", "d2"):
        assert (await city.act(driver(name), "decline", trip)).status == 200
    rounds = city.parts.matched_rounds.rounds
    await run_until_offered(city, trip)
    assert await offered(city, trip) == {"d3", "d4"}
    assert city.parts.matched_rounds.rounds == rounds + 1


async def test_a_trip_that_was_given_back_in_its_head_start_has_another_one(city: City) -> None:
    (trip,) = await waits(city, 0)
    await drivers(city, d1=1, d2=2, d3=3)
    await run_until_offered(city, trip)
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    await city.available("d1", is_online=False)
    await run_until_offered(city, trip)
    assert await offered(city, trip) == {"d2"}
    assert city.parts.matched_rounds.rounds == 2


async def test_a_trip_without_a_driver_waits_for_the_next_round_and_expires_in_the_end(
    redis_url: str, database_url: str
) -> None:
    short = Zone("default", waves=(Wave(1, 1_500, 0.2),), matching=Matching("matched", every_s=0.5))
    async with open_city(redis_url, database_url, zones=Zones([short])) as city:
        (trip,) = await waits(city, 0)
        async with asyncio.timeout(10):
            while (await city.row(trip))["current_status"] == "pending":
                await city.parts.offers.run_due("default")
                await asyncio.sleep(0.02)
        assert (await city.row(trip))["current_status"] == "expired"


async def test_two_servers_never_run_a_zones_round_at_once(redis_url: str, database_url: str) -> None:
    async with (
        open_city(redis_url, database_url, zones=zones()) as one,
        open_city(redis_url, database_url, zones=zones()) as other,
    ):
        trips = await waits(one, *range(8))
        await drivers(one, **{f"d{i}": i + 0.5 for i in range(8)})
        async with asyncio.timeout(20):
            while not all([await offered(one, trip) for trip in trips]):
                await asyncio.gather(*(c.parts.offers.run_due("default") for c in (one, other) * 3))
        first = [await offered(one, trip) for trip in trips]
        assert sorted(first, key=str) == sorted(({f"d{i}"} for i in range(8)), key=str)
        assert one.parts.matched_rounds.rounds + other.parts.matched_rounds.rounds == 1


async def test_a_round_that_dies_half_way_costs_a_trip_one_round(
    redis_url: str, database_url: str
) -> None:
    async with (
        open_city(redis_url, database_url, zones=zones()) as dying,
        open_city(redis_url, database_url, zones=zones()) as other,
    ):
        trips = await waits(dying, 0, 5)
        await drivers(dying, d1=1, d2=6)
        rounds = dying.parts.matched_rounds
        zone = dying.parts.zones.get("default")
        assert zone is not None
        due = await dying.parts.live.offers.claim_waves(dying.keys(), again_ms=rounds.again_ms(zone))
        planned = await rounds.begin(zone, await rounds.for_a_round(zone, due.trip_ids, due.scarce))
        assert len(planned.matched) == 2, "and here it dies"
        waves = await other.redis("ZRANGE", other.keys().waves, 0, -1, "WITHSCORES")
        assert all(int(score) - due.now_ms <= 2 * EVERY_S * 1000 for score in waves[1::2])
        await run_until_offered(other, *trips)
        # What the dead server was about to offer is void, should it only have been slow.
        late = [await offered(other, trip) for trip in trips]
        for matched in planned.matched:
            await dying.parts.offers._run_matched(zone, matched, planned.fence)
        assert [await offered(other, trip) for trip in trips] == late


async def test_where_drivers_are_plenty_nobody_waits_for_a_round(
    redis_url: str, database_url: str
) -> None:
    async with open_city(redis_url, database_url, zones=zones("auto")) as city:
        await drivers(city, d1=1, d2=2, d3=3)
        (trip,) = await waits(city, 0)
        await city.parts.offers.run_due("default")
        assert await offered(city, trip) == {"d1", "d2"}, "a whole wave, at the first look"
        # One trip without a driver does not make others wait, either.
        (lonely,) = await waits(city, 500)
        for _ in range(4):
            await city.parts.offers.run_due("default")
            await asyncio.sleep(0.012)
        (other,) = await waits(city, 0)
        await city.parts.offers.run_due("default")
        assert await offered(city, lonely) == set()
        assert len(await offered(city, other)) == 2
        assert city.parts.matched_rounds.rounds == 0


async def test_auto_matches_once_two_trips_find_nobody(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, zones=zones("auto", every_s=2)) as city:
        old, new = await waits(city, 0, 9)
        async with asyncio.timeout(20):
            while not (city.parts.matched_rounds.rounds and await are_due_together(city)):
                await city.parts.offers.run_due("default")
                await asyncio.sleep(0.01)
        await drivers(city, d1=9.5)
        await run_until_offered(city, new)
        assert await offered(city, old) == set(), "the nearer trip has the driver, not the older one"
        assert city.parts.matched_rounds.rounds >= 1
        # A new trip with drivers enough around it does not wait for the next round.
        await drivers(city, **{f"e{i}": 300 + i for i in range(9)})
        (easy,) = await waits(city, 300)
        rounds = city.parts.matched_rounds.rounds
        await city.redis("HSET", city.keys().matching, "next_ms", await in_a_while_ms(city))
        await city.parts.offers.run_due("default")
        assert len(await offered(city, easy)) == 2
        assert city.parts.matched_rounds.rounds == rounds


async def are_due_together(city: City) -> bool:
    waves = await city.redis("ZRANGE", city.keys().waves, 0, -1, "WITHSCORES")
    return len(set(waves[1::2])) == 1


async def in_a_while_ms(city: City) -> int:
    seconds, _ = await city.redis("TIME")
    return int(seconds) * 1000 + 1_900


async def test_without_the_library_a_zone_says_so_and_asks_the_nearest(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with capture_logs() as logs:
        async with open_city(redis_url, database_url, zones=zones()) as city:
            await drivers(city, d1=1, d2=2, d3=3)
            (trip,) = await waits(city, 0)
            await city.parts.offers.run_due("default")
            assert await offered(city, trip) == {"d1", "d2"}
    said = [line for line in logs if "matching is not installed" in line["event"]]
    assert [(line["zone"], line["log_level"]) for line in said] == [("default", "warning")]


async def test_a_round_that_fails_asks_the_nearest(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(matched_rounds, "_plan_round", fail)
    await drivers(city, d1=1, d2=2, d3=3)
    (trip,) = await waits(city, 0)
    await city.parts.offers.run_due("default")
    assert await offered(city, trip) == {"d1", "d2"}
    assert city.parts.matched_rounds.failures == 1


async def test_a_routing_engine_that_is_away_delays_nobody(redis_url: str, database_url: str) -> None:
    away = zones(routing_url="http://127.0.0.1:1", routing_deadline_s=0.2)
    async with open_city(redis_url, database_url, zones=away) as city:
        await drivers(city, d1=1)
        (trip,) = await waits(city, 0)
        await city.parts.offers.run_due("default")
        assert await offered(city, trip) == {"d1"}
        assert city.parts.matched_rounds.routing.fallbacks == 1


async def test_nothing_due_is_no_round(city: City) -> None:
    zone = city.parts.zones.get("default")
    assert zone is not None
    due = DueWaves(0, None, [], frozenset({"car"}))
    assert not city.parts.matched_rounds.applies(zone, due)
    assert await city.parts.matched_rounds.for_a_round(zone, ["default_gone"], {"car"}) == {}
    assert await city.parts.matched_rounds.begin(zone, {}) == MatchedRound()


async def test_trips_that_nobody_can_serve_hold_nobody_up(redis_url: str, database_url: str) -> None:
    """Twenty trips out of all drivers' reach, or for vehicles that there are not, keep the zone matching;
    a trip with drivers around is asked for at once all the same, and one that lacks them is not."""
    async with open_city(redis_url, database_url, zones=zones("auto", every_s=2)) as city:
        await waits(city, *range(400, 410))
        for _ in range(10):
            await city.trip(pickup=at(0), vehicle_type="van")
        await drivers(city, **{f"d{i}": i for i in range(1, 6)})
        async with asyncio.timeout(30):
            while city.parts.matched_rounds.rounds < 1:
                wait_ms = await city.parts.offers.run_due("default")
                await asyncio.sleep(max(0.005, min(wait_ms or 20, 20) / 1000))
        for steps in (1, 2):
            await city.redis("HSET", city.keys().matching, "next_ms", await in_a_while_ms(city))
            rounds = city.parts.matched_rounds.rounds
            assert await is_scarce(city)
            (easy,) = await waits(city, steps)
            await city.parts.offers.run_due("default")
            assert len(await offered(city, easy)) == 2, "a whole wave, at the first look"
            assert city.parts.matched_rounds.rounds == rounds
        # Five drivers for six trips that reach them are too few: these wait for the round.
        await city.redis("HSET", city.keys().matching, "next_ms", await in_a_while_ms(city))
        crowd = await waits(city, 1, 2, 3, 4)
        await city.parts.offers.run_due("default")
        assert [await offered(city, trip) for trip in crowd] == [set()] * 4


async def test_a_zone_goes_on_matching_for_as_long_as_trips_are_in_want(
    redis_url: str, database_url: str
) -> None:
    """Plenty of drivers elsewhere do not end it: it would begin again with the next look."""
    async with open_city(redis_url, database_url, zones=zones("auto")) as city:
        await waits(city, 400, 401)
        await drivers(city, **{f"d{i}": i for i in range(9)})
        seen = []
        async with asyncio.timeout(30):
            while city.parts.matched_rounds.rounds < 8:  # the hold lasts for five
                await city.parts.offers.run_due("default")
                seen.append(await is_scarce(city))
                await asyncio.sleep(0.005)
        assert seen == sorted(seen), "once it has begun it goes on"


async def is_scarce(city: City, vehicle_type: str = "car") -> bool:
    seconds, micros = await city.redis("TIME")
    until_ms = await city.redis("HGET", city.keys().matching, f"scarce_until_ms:{vehicle_type}")
    return int(until_ms or 0) > int(seconds) * 1000 + int(micros) // 1000


async def test_a_lack_of_vans_is_nothing_to_cars(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_city(redis_url, database_url, zones=zones("auto", every_s=2)) as city:
        for _ in range(2):
            await city.trip(pickup=at(0), vehicle_type="van")
        async with asyncio.timeout(30):
            while not await is_scarce(city, "van"):
                await city.parts.offers.run_due("default")
                await asyncio.sleep(0.01)

        async def look_closer(_: WellServed, zone: Zone, asking: Any) -> set[str]:
            assert {trip.hash_["vehicle_type"] for trip in asking.values()} <= {"van"}
            return set()

        monkeypatch.setattr(WellServed, "of", look_closer)
        await drivers(city, d1=1, d2=2, d3=3, d4=4)
        crowd = await waits(city, 0, 1, 2)
        await city.redis("HSET", city.keys().matching, "next_ms", await in_a_while_ms(city))
        await city.parts.offers.run_due("default")
        assert [len(await offered(city, trip)) for trip in crowd] == [2, 2, 2]
        assert not await is_scarce(city, "car")


@pytest.mark.parametrize("trips", [1, 9])
async def test_a_round_sees_the_drivers_beside_each_trip_however_many_are_elsewhere(
    city: City, monkeypatch: pytest.MonkeyPatch, trips: int
) -> None:
    """Two crowds of drivers as far apart as one large circle is wide, one of them larger than a look."""
    monkeypatch.setattr(drivers_around, "MOST_DRIVERS", 20)
    monkeypatch.setattr(matched_rounds, "_NEAREST", 3)
    await drivers(city, **{f"a{i}": i * 0.1 for i in range(25)}, b=40.5)
    crowd = await waits(city, *(i * 0.1 for i in range(trips)), 40)
    await run_until_offered(city, *crowd)
    assert await offered(city, crowd[-1]) == {"b"}
    assert city.parts.matched_rounds.rounds == 1


@pytest.mark.parametrize(("trips", "names", "is_short"), [(6, 6, True), (4, 1, True), (2, 9, False)])
async def test_auto_matches_where_drivers_are_no_more_than_the_trips_that_share_them(
    redis_url: str, database_url: str, trips: int, names: int, is_short: bool
) -> None:
    """Every trip is on offer: each driver may hold three offers, so that none finds nobody."""
    async with open_city(redis_url, database_url, zones=zones("auto", every_s=2)) as city:
        await drivers(city, **{f"d{i}": i / 10 for i in range(names)})
        # Far trips that nobody can serve are none of these.
        await waits(city, *(i / 10 for i in range(trips)), *range(400, 401))
        await city.parts.offers.run_due("default")
        assert await is_scarce(city) == is_short
        if is_short:
            rounds = city.parts.matched_rounds.rounds
            (late,) = await waits(city, 0)
            await run_until_offered(city, late, drivers=0)
            assert city.parts.matched_rounds.rounds == rounds + 1
