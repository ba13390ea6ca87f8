"""What operators run with a plain redis-cli: true copies of the libraries, and true answers."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.config import Settings
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.zones import DEFAULT_WAVES, Zone
from dispatcher.live.inspection import FilterView, InspectionScripts
from dispatcher.live.servers import wave_settings
from dispatcher.resources import LUA_DIR
from dispatcher.service.offers import CANDIDATES_PER_OFFER, MORE_CANDIDATES
from tests.harness.lua_zone import FIX_AGE_MS, START_MS
from tests.harness.lua_zone import Zone as LiveZone
from tests.lua.copies import INSPECTIONS, with_copies
from tests.lua.settling import put_on_offer
from tests.lua.sources import GLOBALS, calls_in, globals_of, without_comments

_WRITES = {"SET", "DEL", "HSET", "ZADD", "ZREM", "EXPIRE", "SADD", "SREM", "RPUSH", "LPOP", "XADD"}


def _text(name: str) -> str:
    return (LUA_DIR / "inspect" / f"{name}.lua").read_text()


@pytest.mark.parametrize("name", INSPECTIONS)
def test_an_inspection_holds_the_libraries_as_they_are(name: str) -> None:
    text = _text(name)
    assert with_copies(text) == text, "run: uv run python -m tests.lua.copies"


@pytest.mark.parametrize("name", INSPECTIONS)
def test_an_inspection_reads_and_leaves_nothing_behind(name: str) -> None:
    text = _text(name)
    assert not {command.strip("'") for command, _ in calls_in(without_comments(text))} & _WRITES
    found = globals_of(text)
    assert (found.written, found.read - GLOBALS) == (set(), set())


def test_the_filters_know_the_products_own_settings() -> None:
    """Without arguments, `why` answers for a zone that sets nothing itself."""
    text = _text("why")
    assert f"ARGV[3] or {CANDIDATES_PER_OFFER})" in text
    assert f"ARGV[4] or {MORE_CANDIDATES})" in text
    fix_age_ms = Settings.model_fields["fix_max_age_s"].default * 1000
    assert f"DEFAULTS = '{wave_settings(Zone('z'), fix_age_ms)}'" in text


async def _why(zone: LiveZone, driver_id: str = "d1") -> dict[str, FilterView]:
    rows = await InspectionScripts(zone.pipeline).why(
        zone.keys, "z_1", driver_id, fix_age_ms=FIX_AGE_MS, max_open_offers=3,
        candidates_per_offer=CANDIDATES_PER_OFFER, more_candidates=MORE_CANDIDATES,
        waves=DEFAULT_WAVES,
    )  # fmt: skip
    return {row.name: row for row in rows}


async def _refusing(zone: LiveZone, driver_id: str = "d1") -> dict[str, str]:
    return {n: row.saw for n, row in (await _why(zone, driver_id)).items() if row.passes is False}


async def _near(zone: LiveZone, name: str = "d1", *, lng: float = 8.6, **columns: Any) -> None:
    """A driver who would be offered the trip `z_1` but for `columns`."""
    await zone.driver(name, fix_ms=columns.pop("fix_ms", START_MS), **columns)
    await zone.redis.hset(zone.keys.driver(name), "lng", lng)
    await zone.redis.geoadd(zone.keys.geo("car"), (lng, 50.1, name))
    await zone.redis.zadd(zone.keys.present, {f"driver:{name}": START_MS + 9_000})


async def test_who_is_kept_by_nothing_would_be_offered_the_trip(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    assert await _refusing(zone) == {}
    rows = await _why(zone)
    assert all(row.passes for row in rows.values())
    # Postgres knows the zone; all others are asked here, each under its code and in the list's order.
    assert list(rows) == [code for code in Obstacle if code is not Obstacle.OTHER_ZONE]


@pytest.mark.parametrize(
    ("columns", "name", "saw"),
    [
        ({"is_online": False}, "offline", "offline in this zone, works in z"),
        ({"availability_status": "unavailable"}, "unavailable", "unavailable"),
        ({"trip_id": "z_9"}, "active_trip", "on trip z_9"),
        ({"vehicle_type": "van"}, "other_vehicle_type", "van for a trip that asks for car"),
        ({"fix_ms": START_MS - 75_000}, "stale_position", "fix 75.0 s old, 60.0 s at most"),
    ],
)
async def test_what_the_drivers_own_state_says(
    zone: LiveZone, columns: dict[str, Any], name: str, saw: str
) -> None:
    await zone.trip()
    await _near(zone, **columns)
    assert await _refusing(zone) == {name: saw}


async def test_no_position_yet(zone: LiveZone) -> None:
    await zone.trip()
    await zone.driver("d1")
    await zone.redis.zadd(zone.keys.present, {"driver:d1": START_MS + 9_000})
    assert (await _refusing(zone))["no_position"] == "no position yet"


@pytest.mark.parametrize(
    ("presence_ends_ms", "saw"), [(None, "no connection"), (START_MS - 2_000, "gone for 2.0 s")]
)
async def test_not_present(zone: LiveZone, presence_ends_ms: int | None, saw: str) -> None:
    await zone.trip()
    await _near(zone)
    await zone.redis.zrem(zone.keys.present, "driver:d1")
    if presence_ends_ms:
        await zone.redis.zadd(zone.keys.present, {"driver:d1": presence_ends_ms})
    assert await _refusing(zone) == {"not_present": saw}


async def test_declined(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    await zone.redis.sadd(zone.keys.barred("z_1"), "d1")
    assert await _refusing(zone) == {"barred": "declined the trip or gave it back"}


async def test_let_it_pass_until_the_widest_wave_asks_again(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    await zone.redis.sadd(zone.keys.passed("z_1"), "d1")
    assert await _refusing(zone) == {"passed": "let an offer of the trip pass"}
    await zone.redis.hset(zone.keys.trip("z_1"), "round", len(DEFAULT_WAVES) - 1)
    assert await _refusing(zone) == {}


async def test_holds_an_offer_of_the_trip_already(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    await put_on_offer(zone, "d1")
    assert await _refusing(zone) == {"on_offer": "holds an offer of the trip for 15.0 s more"}


async def test_has_three_open_offers(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    for number in (7, 8, 9):
        await put_on_offer(zone, "d1", trip_id=f"z_{number}")
    assert await _refusing(zone) == {"enough_offers": "has 3 open offers, 3 at most"}


async def test_too_far_for_the_wave(zone: LiveZone) -> None:
    await zone.trip()
    await zone.redis.hset(zone.keys.trip("z_1"), "round", 1)
    await _near(zone, lng=8.6589)
    assert await _refusing(zone) == {"out_of_reach": "4.2 km away, wave 2 reaches 3.0 km"}


async def test_near_but_not_in_the_geo_set(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    await zone.redis.zrem(zone.keys.geo("car"), "d1")
    assert list(await _refusing(zone)) == ["not_among_nearest"]


async def test_nearer_drivers_take_the_places(zone: LiveZone) -> None:
    """Who is nearer and kept by something takes no place."""
    await zone.trip()
    await _near(zone, lng=8.61)
    for name in ("a", "b", "c"):
        await _near(zone, name)
    assert await _refusing(zone) == {"no_place_left": "0 of 3 offers are out, 3 go to nearer drivers"}
    await zone.redis.sadd(zone.keys.barred("z_1"), "b")
    assert await _refusing(zone) == {}


async def test_a_trip_that_waits_for_a_round_of_matching(zone: LiveZone) -> None:
    await zone.trip()
    await _near(zone)
    await zone.redis.zadd(zone.keys.waves, {"z_1": zone.now_ms})
    assert "round_of_matching" not in await _why(zone), "it is due with its wave"
    await zone.matching.begin_round(zone.keys, ["z_1"], every_ms=3_000)
    await zone.advance(1_000)
    row = (await _why(zone))["round_of_matching"]
    assert (row.passes, row.saw) == (None, "the round of matching in 2.0 s chooses who is asked first")
    assert await _refusing(zone) == {}, "it decides, and keeps nobody"
    await _near(zone, lng=8.66)
    for name in ("a", "b", "c"):
        await _near(zone, name)
    rows = await _why(zone)
    assert rows["out_of_reach"].saw == "4.3 km away, the round reaches 12.0 km"
    assert [rows[name].passes for name in ("out_of_reach", "not_among_nearest", "no_place_left")] == [
        True, None, None,
    ]  # fmt: skip
    await zone.advance(2_000)
    assert "round_of_matching" not in await _why(zone)


async def test_a_trip_that_is_taken_or_being_taken(zone: LiveZone) -> None:
    await zone.trip(current_status="accepted", driver_id="d2")
    await _near(zone)
    await zone.redis.set(zone.keys.trip_claim("z_1"), "token")
    assert await _refusing(zone) == {
        "trip_not_pending": "the trip is accepted with driver d2",
        "trip_claimed": "somebody is changing the trip right now",
    }


async def test_who_and_what_nobody_knows(zone: LiveZone) -> None:
    rows = await _why(zone)
    assert rows["trip_not_pending"].saw == "the trip is not in Redis: Postgres knows what became of it"
    assert rows["offline"].saw == "the driver is not known in this zone"
    assert (rows["other_vehicle_type"].passes, rows["out_of_reach"].passes) == (None, None)


@pytest.mark.parametrize(
    ("name", "keys", "args", "told"),
    [
        ("trip", ["dsp:{z}:trip:z_1"], [], ["offered to d1", "for 15.0 s more"]),
        ("driver", ["dsp:{z}:driver:d1"], [], ["fix", "0.0 s old"]),
        ("zone", ["dsp:{z}:epoch"], [], ["loaded", "0.0 s ago"]),
        ("limits", ["dsp:{z}:epoch"], ["d1"],
         ["general", "1 calls, the oldest 0.0 s ago, the newest 0.0 s ago"]),
    ],
)  # fmt: skip
async def test_the_other_looks(
    zone: LiveZone, name: str, keys: list[str], args: list[str], told: list[str]
) -> None:
    await zone.trip()
    await _near(zone)
    await put_on_offer(zone, "d1")
    await zone.redis.rpush(zone.keys.limit("general", "d1"), zone.now_us)
    assert told in await zone.pipeline.run(f"inspect/{name}", keys, args)


@pytest.mark.parametrize("name", INSPECTIONS)
async def test_keys_that_are_none_are_refused_in_words(zone: LiveZone, name: str) -> None:
    with pytest.raises(Exception, match=r"the keys? (is|are) dsp:\{ZONE\}"):
        await zone.pipeline.run(f"inspect/{name}", ["nothing"], [])
