"""Why a driver did not get a trip: what the filters say while it waits, and what happened once it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.background import zone_holder
from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Matching, Wave, Zone, Zones
from dispatcher.jobs.loop import JobLoop
from dispatcher.live.keys import keys_of
from tests.harness.services import PLACE, City, driver, open_city


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def _why(city: City, trip_id: str, driver_id: str) -> dict[str, Any]:
    return await city.parts.explanation.why(trip_id, driver_id)


async def _ready(city: City, *names: str) -> None:
    """Drivers at the pickup who are present: nothing keeps offers from them."""
    await city.online(*names, location=PLACE)
    for name in names:
        ends_ms = int(time.time() * 1000) + 60_000
        await city.redis("ZADD", city.keys().present, ends_ms, f"driver:{name}")


async def _save_offers(city: City) -> None:
    for _ in range(2):  # an outcome waits for one round
        await city.parts.effects.offer_log.save(city.parts.ledger.database)


async def test_would_be_offered_then_holds_the_offer(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d1")
    assert (await _why(city, trip_id, "d1"))["verdict"]["codes"] == ["would_be_offered"]
    await city.parts.offers.run_due("default")
    await _save_offers(city)
    found = await _why(city, trip_id, "d1")
    assert found["verdict"]["codes"] == ["on_offer"]
    assert [line["code"] for line in found["history"]] == ["on_offer"]


async def test_works_in_another_zone(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d1")
    await city.postgres.execute("UPDATE driver_details SET zone = 'north'")
    assert (await _why(city, trip_id, "d1"))["verdict"]["codes"] == ["other_zone"]


async def test_was_offered_it_and_let_it_pass(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d1", "d2")
    await city.parts.offers.run_due("default")
    await _save_offers(city)
    await city.postgres.execute(
        "UPDATE trip_offers SET outcome = 'expired', outcome_at = deadline WHERE driver_id = 'd1'"
    )
    await city.act(driver("d2"), "accept", trip_id)
    verdict = (await _why(city, trip_id, "d1"))["verdict"]
    assert verdict["codes"] == ["let_it_pass"]
    assert "driver d2 has it" in verdict["text"]
    assert (await _why(city, trip_id, "d2"))["verdict"]["codes"] == ["has_the_trip"]


async def test_was_never_offered_it(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d2")
    await city.online("d1")
    await city.act(driver("d2"), "accept", trip_id)
    assert (await _why(city, trip_id, "d1"))["verdict"]["codes"] == ["never_offered"]


async def test_gave_it_back(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d1")
    await city.act(driver("d1"), "accept", trip_id)
    await city.act(driver("d1"), "cancel", trip_id)
    found = await _why(city, trip_id, "d1")
    assert found["verdict"]["codes"] == ["barred"]
    assert [line["code"] for line in found["history"]] == ["accepted", "released"]


async def _save_races(city: City) -> None:
    for _ in range(2):  # a race waits for one round
        await city.parts.effects.race_log.save(city.parts.ledger.database)


async def test_lost_the_race(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d1", "d2")
    answers = await asyncio.gather(*(city.act(driver(d), "accept", trip_id) for d in ("d1", "d2")))
    loser = "d1" if answers[0].status == 409 else "d2"
    await _save_races(city)
    await city.redis("FLUSHALL")  # nothing of it is read from Redis
    await city.parts.rehydration.rebuild("default")
    verdict = (await _why(city, trip_id, loser))["verdict"]
    assert verdict["codes"] == ["lost_the_race"]
    assert " ms" in verdict["text"]


async def test_a_race_is_told_with_the_accept_that_won_it(city: City) -> None:
    """d3 loses to d1 and then, after the release, to d2; d2 and d4 hold no offer, d4 only declines."""
    trip_id = await city.trip()
    await _ready(city, "d1", "d2", "d3", "d4")
    await city.act(driver("d1"), "accept", trip_id)
    for _ in range(2):  # the second one is not kept
        assert (await city.act(driver("d3"), "accept", trip_id)).status == 409
    assert (await city.act(driver("d4"), "decline", trip_id)).status == 409
    await city.act(driver("d1"), "cancel", trip_id)
    await city.act(driver("d2"), "accept", trip_id)
    assert (await city.act(driver("d3"), "accept", trip_id)).status == 409
    await _save_races(city)
    races = await city.parts.reads.races(trip_id)
    assert [(race["version"], race["driver_id"]) for race in races] == [(1, "d3"), (3, "d3")]
    assert city.parts.effects.race_log.unsaved() == 0
    codes = [line["code"] for line in (await _why(city, trip_id, "d3"))["history"]]
    assert codes == ["taken", "lost_the_race", "taken", "lost_the_race"]


async def test_of_a_crowd_the_first_hundred_are_kept(city: City) -> None:
    trip_id = await city.trip()
    await _ready(city, "d0")
    await city.act(driver("d0"), "accept", trip_id)
    now_ms = int(time.time() * 1000) + 5_000
    for half in range(2):
        for i in range(120):
            city.parts.effects.race_log.add(trip_id, f"r{half}-{i:03}", now_ms + i, 1)
        await _save_races(city)
    races = await city.parts.reads.races(trip_id)
    assert [race["driver_id"] for race in races] == [f"r0-{i:03}" for i in range(100)]


async def test_a_race_for_an_accept_that_was_not_committed_is_none(city: City) -> None:
    trip_id = await city.trip()
    city.parts.effects.race_log.add(trip_id, "d1", int(time.time() * 1000) + 5_000, 0)
    await _save_races(city)
    assert await city.parts.reads.races(trip_id) == []


@pytest.mark.parametrize(
    ("trip_id", "driver_id", "code"),
    [("default_x", "d1", "trip_not_found"), ("nowhere_x", "d1", "trip_not_found"),
     ("", "nobody", "driver_not_found")],
)  # fmt: skip
async def test_who_and_what_does_not_exist(city: City, trip_id: str, driver_id: str, code: str) -> None:
    await city.online("d1")
    with pytest.raises(Refusal, match=code):
        await _why(city, trip_id or await city.trip(), driver_id)


async def test_the_answer_to_availability_says_what_keeps_offers_away(city: City) -> None:
    async def away(**more: Any) -> Any:
        import orjson

        return orjson.loads((await city.available("d1", **more)).body)["keeps_offers_away"]

    assert await away(is_online=True) == ["no_position"]
    assert await away(location=PLACE) == []
    assert await away(availability_status="unavailable") == ["unavailable"]
    assert await away(availability_status="available") == []
    old_ms = int(time.time() * 1000) - 75_000
    await city.redis("HSET", keys_of("default").driver("d1"), "fix_ms", old_ms)
    assert await away(is_online=True) == ["stale_position"]
    assert await away(is_online=False) == ["offline", "stale_position"]


#: A plan of its own, shorter than the default and narrower at its end.
OWN = Zone(
    "default",
    waves=(Wave(1, 700, 1), Wave(2, 3_000.5, 1), Wave(1, 7_000, 1)),
    offers_per_driver=1,
    matching=Matching(dispatch="nearest"),
)
USUAL = Zone("default", matching=Matching(dispatch="nearest"))
#: Degrees of latitude north of the pickup: some 0.6, 2.4, 5, 9 and 16 km.
NORTH = {"d1": 0.0054, "d2": 0.0216, "d3": 0.045, "d4": 0.081, "d5": 0.144}


async def _by_redis_cli(city: City, trip_id: str, driver_id: str) -> dict[str, list[str]]:
    rows = await city.inspect("why", city.keys().trip(trip_id), city.keys().driver(driver_id))
    return {name: [passes, saw] for name, passes, saw in rows}


async def _take(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the zone as a server does that starts; its rounds are run by the test."""
    monkeypatch.setattr(JobLoop, "start", lambda _: None)
    holder = zone_holder(city.parts)
    await holder.beat()
    assert holder.held() == ["default"]
    await holder.stop()


@pytest.mark.parametrize(
    ("zone", "is_held"), [(USUAL, False), (USUAL, True), (OWN, True)], ids=["unheld", "usual", "own"]
)
async def test_redis_cli_says_the_same_all_the_trips_life(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, zone: Zone, *, is_held: bool
) -> None:
    fix_age_s = 600 if is_held else 60
    async with open_city(redis_url, database_url, zones=Zones([zone]), fix_max_age_s=fix_age_s) as city:
        if is_held:
            await _take(city, monkeypatch)
        trip_id = await city.trip(pickup=PLACE)
        await _ready(city, *NORTH)
        for name, north in NORTH.items():
            await city.online(name, location=(PLACE[0] + north, PLACE[1]))
        # As old as a fix may not be by default.
        await city.redis("HINCRBY", city.keys().driver("d4"), "fix_ms", -65_000)
        verdicts = set()

        async def compare() -> None:
            for name in NORTH:
                told, looked = await _why(city, trip_id, name), await _by_redis_cli(city, trip_id, name)
                codes = [view["filter"] for view in told["filters"] if view["passes"] is False]
                assert looked.pop("verdict")[0] == " ".join(codes or ["would_be_offered"])
                saw = {view["filter"]: view["saw"].split(" for ")[0] for view in told["filters"]}
                for each in ("passed", "out_of_reach", "not_among_nearest", "no_place_left"):
                    assert looked[each][1] == saw[each]
                verdicts.update(codes or ["would_be_offered"])

        async with asyncio.timeout(60):
            # Each wave, and some looks after the last one.
            for _ in range(len(zone.waves) + 3):
                await compare()
                await city.parts.offers.run_due("default")
                await compare()
                # Nobody answers, and the time of their offers is over.
                for name in await city.redis("ZRANGE", city.keys().offers(trip_id), 0, -1):
                    await city.redis("ZADD", city.keys().offers(trip_id), 1, name)
                    await city.redis("ZREM", city.keys().inbox(name), trip_id)
                await city.redis("ZADD", city.keys().waves, "XX", 1, trip_id)
        assert int((await city.hash(trip_id)).get("round", len(zone.waves))) >= len(zone.waves)
        assert verdicts >= {"would_be_offered", "on_offer", "passed", "out_of_reach"}
