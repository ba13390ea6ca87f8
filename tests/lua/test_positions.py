"""The drivers' positions: whose fix counts, and who is on offer because of it."""

from __future__ import annotations

import pytest

from dispatcher.live.positions import DriverFix, FixCode
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone, limit
from tests.lua.settling import geo


async def put(
    zone: Zone, *fixes: tuple[str, float, float, int], vehicle: str = "car"
) -> list[tuple[FixCode, str]]:
    """What became of each fix: its code, and the driver's trip or right vehicle type."""
    results = await zone.positions.put_positions(
        zone.keys, vehicle, [DriverFix(*fix) for fix in fixes], fix_age_ms=FIX_AGE_MS
    )
    assert not any(result.trip_id and result.vehicle_type for result in results)
    return [(result.code, result.trip_id or result.vehicle_type) for result in results]


async def test_each_driver_has_their_own_result(zone: Zone) -> None:
    await zone.driver("free")
    await zone.driver("busy", trip_id="z_1")
    await zone.driver("off", is_online=False)
    await zone.driver("van", vehicle_type="van")
    await zone.driver("pause", availability_status="unavailable")
    names = ("free", "busy", "nobody", "off", "van", "pause")
    results = await put(zone, *((name, 50.1, 8.6, START_MS) for name in names))
    assert results == [
        ("taken", ""), ("taken", "z_1"), ("unknown", ""), ("offline", ""), ("other_vehicle", "van"),
        ("taken", ""),
    ]  # fmt: skip
    assert await geo(zone) == ["free"]
    assert set(await zone.redis.zrange(zone.keys.seen, 0, -1)) == {"free", "busy", "pause"}
    assert await zone.redis.smembers(zone.keys.vehicles) == {"car"}
    stored = await zone.hash(zone.keys.driver("busy"))
    assert (stored["lat"], stored["lng"], stored["fix_ms"]) == ("50.1", "8.6", str(START_MS))
    for name in ("off", "van"):
        assert "fix_ms" not in await zone.hash(zone.keys.driver(name))
    assert await zone.redis.exists(zone.keys.driver("nobody")) == 0


async def test_the_newest_fix_wins_whatever_order_they_come_in(zone: Zone) -> None:
    await zone.driver("d1")
    assert await put(zone, ("d1", 50.1, 8.6, START_MS - 10)) == [("taken", "")]
    before = await zone.dump()
    assert await put(zone, ("d1", 1.0, 2.0, START_MS - 11)) == [("late", "")]
    assert await put(zone, ("d1", 1.0, 2.0, START_MS - 10)) == [("late", "")]
    assert await zone.dump() == before
    assert await put(zone, ("d1", 51.0, 9.0, START_MS - 9)) == [("taken", "")]
    ((lng, lat),) = await zone.redis.geopos(zone.keys.geo("car"), "d1")
    assert (round(lat, 4), round(lng, 4)) == (51.0, 9.0)
    # Two fixes of one driver in one call: the newest stands.
    results = await put(zone, ("d1", 52.0, 9.0, START_MS - 3), ("d1", 53.0, 9.0, START_MS - 5))
    assert results == [("taken", ""), ("late", "")]
    assert (await zone.hash(zone.keys.driver("d1")))["lat"] in ("52.0", "52")


async def test_a_clock_that_runs_ahead_shuts_nobody_out(zone: Zone) -> None:
    await zone.driver("d1")
    await put(zone, ("d1", 50.1, 8.6, START_MS + 3_600_000))
    assert (await zone.hash(zone.keys.driver("d1")))["fix_ms"] == str(START_MS)
    await zone.advance(1)
    assert await put(zone, ("d1", 50.2, 8.6, START_MS + 3_600_000)) == [("taken", "")]


async def test_a_clock_that_steps_back_shuts_no_fix_out(zone: Zone) -> None:
    await zone.driver("d1")
    await put(zone, ("d1", 50.1, 8.6, START_MS))
    await zone.advance(-3_600_000)
    assert await put(zone, ("d1", 50.2, 8.6, START_MS)) == [("taken", "")]
    assert (await zone.hash(zone.keys.driver("d1")))["fix_ms"] == str(zone.now_ms)
    assert await put(zone, ("d1", 1.0, 2.0, zone.now_ms - 1)) == [("late", "")]


async def test_a_stale_fix_puts_nobody_on_offer(zone: Zone) -> None:
    await zone.driver("d1")
    assert await put(zone, ("d1", 50.1, 8.6, START_MS - FIX_AGE_MS)) == [("taken", "")]
    assert await geo(zone) == []
    await put(zone, ("d1", 50.1, 8.6, START_MS - FIX_AGE_MS + 1))
    assert await geo(zone) == ["d1"]


async def test_who_took_a_trip_leaves_the_geo_set_with_the_next_fix(zone: Zone) -> None:
    await zone.driver("d1")
    await put(zone, ("d1", 50.1, 8.6, START_MS))
    await zone.redis.hset(zone.keys.driver("d1"), "trip_id", "z_1")
    await zone.advance(1)
    await put(zone, ("d1", 50.1, 8.6, START_MS + 1))
    assert await geo(zone) == []


@pytest.mark.parametrize(("lat", "lng"), [(85.05112878, 180.0), (-85.05112878, -180.0), (0.0, 0.0)])
async def test_the_edges_of_the_map(zone: Zone, lat: float, lng: float) -> None:
    await zone.driver("d1")
    assert await put(zone, ("d1", lat, lng, START_MS)) == [("taken", "")]
    assert await geo(zone) == ["d1"]


async def test_a_cold_zone_takes_no_position(zone: Zone) -> None:
    await zone.driver("d1")
    await zone.redis.delete(zone.keys.epoch)
    before = await zone.dump()
    assert await put(zone, ("d1", 50.1, 8.6, START_MS)) == [(FixCode.COLD, "")]
    assert await zone.dump() == before


async def test_each_fix_counts_against_its_own_limits(zone: Zone) -> None:
    await zone.driver("d1")
    names = ("d1", "d1", "d1", "nobody", "nobody")
    fixes = [DriverFix(name, 50.1, 8.6, START_MS + i - 9) for i, name in enumerate(names)]
    limits = [
        [limit(2, name="location_update", subject=n), limit(4, name="ip", subject="10.0.0.1")]
        for n in names
    ]
    results = await zone.positions.put_positions(
        zone.keys, "car", fixes, fix_age_ms=FIX_AGE_MS, limits=limits
    )
    assert [result.code for result in results] == [
        "taken", "taken", "rate_limited", "unknown", "unknown",
    ]  # fmt: skip
    states = [result.limit for result in results]
    assert [(s.name, s.remaining) for s in states if s] == [
        ("location_update", 1), ("location_update", 0), ("location_update", 0),
        ("location_update", 1), ("location_update", 0),
    ]  # fmt: skip
    own = zone.keys.limit("location_update", "d1")
    assert await zone.redis.llen(own) == 2, "a refused fix is not counted"
    assert await zone.redis.llen(zone.keys.limit("ip", "10.0.0.1")) == 4
    (refused,) = await zone.positions.put_positions(
        zone.keys,
        "car",
        [DriverFix("d1", 51.0, 9.0, START_MS)],
        fix_age_ms=FIX_AGE_MS,
        limits=limits[:1],
    )
    assert refused.code == "rate_limited"
    assert (await zone.hash(zone.keys.driver("d1")))["fix_ms"] == str(START_MS - 8)


async def test_a_fix_without_a_time_gets_that_of_redis(zone: Zone) -> None:
    """The clocks of servers differ; Redis' clock is one for all."""
    await zone.driver("d1")
    fixes = [DriverFix("d1", 50.1, 8.6, None), DriverFix("d1", 50.2, 8.6, None)]
    results = await zone.positions.put_positions(zone.keys, "car", fixes, fix_age_ms=FIX_AGE_MS)
    assert [(result.code, result.at_ms) for result in results] == [("taken", START_MS)] * 2
    assert (await zone.hash(zone.keys.driver("d1")))["lat"] == "50.2"
    assert (await zone.hash(zone.keys.driver("d1")))["fix_ms"] == str(START_MS)
    assert await geo(zone) == ["d1"]
