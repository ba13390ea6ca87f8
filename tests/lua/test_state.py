"""Loading the picture version by version, and the drivers' positions in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.trips import Status, Trip
from dispatcher.live.scripts import FINISHED_TTL_S
from tests.harness.lua_zone import (
    BACKENDS,
    FIX_AGE_MS,
    START_MS,
    Zone,
    limit,
    make_driver,
    make_trip,
    open_zone,
)


@pytest.fixture(params=BACKENDS)
async def zone(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Zone]:
    async with open_zone(request.param, redis_url) as opened:
        yield opened


async def geo(zone: Zone, vehicle: str = "car") -> list[str]:
    return sorted(await zone.redis.zrange(zone.keys.geo(vehicle), 0, -1))


# --- load_trip


async def test_a_trip_is_loaded_and_never_taken_back(zone: Zone) -> None:
    load = zone.scripts.load_trip
    assert await load(zone.keys, make_trip(version=9))
    assert await load(zone.keys, make_trip(version=10, cancel_reason="x"))
    before = await zone.dump()
    for version in (0, 9, 10):
        assert not await load(zone.keys, make_trip(version=version), former_driver="d1")
    assert await zone.dump() == before
    stored = Trip.from_hash(await zone.hash(zone.keys.trip("z_1")))
    assert stored == make_trip(version=10, cancel_reason="x")


@pytest.mark.parametrize("status", list(Status))
async def test_each_state_brings_what_belongs_to_it(zone: Zone, status: Status) -> None:
    bound = status in (Status.ACCEPTED, Status.ARRIVED, Status.ONGOING)
    ended = status in (Status.COMPLETED, Status.CANCELLED, Status.EXPIRED)
    await zone.driver("d1")
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS + 9_000})
    owner = None if status in (Status.PENDING, Status.EXPIRED) else "d1"
    trip = make_trip(version=2, current_status=status, driver_id=owner)
    assert await zone.scripts.load_trip(zone.keys, trip)
    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == trip
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ("z_1" if bound else "")
    life_s = await zone.redis.ttl(zone.keys.trip("z_1"))
    assert (0 < life_s <= FINISHED_TTL_S) if ended else life_s == -1
    due = await zone.redis.zscore(zone.keys.waves, "z_1")
    assert due == (START_MS + 9_000 if status is Status.PENDING else None), "a planned wave stays"


async def test_a_pending_trip_without_a_wave_is_due_now(zone: Zone) -> None:
    await zone.scripts.load_trip(zone.keys, make_trip())
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


async def test_a_trip_that_came_back_to_life_does_not_expire(zone: Zone) -> None:
    done = make_trip(version=1, current_status=Status.CANCELLED)
    await zone.scripts.load_trip(zone.keys, done)
    await zone.scripts.load_trip(zone.keys, make_trip(version=2))
    assert await zone.redis.ttl(zone.keys.trip("z_1")) == -1


async def test_the_bond_moves_from_one_driver_to_the_next(zone: Zone) -> None:
    await zone.driver("d1", trip_id="z_1")
    await zone.driver("d2")
    trip = make_trip(version=3, current_status=Status.ACCEPTED, driver_id="d2")
    await zone.scripts.load_trip(zone.keys, trip, former_driver="d1")
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ""
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_1"
    # The same driver on both sides keeps it; and one who has moved on keeps the new one.
    trip = make_trip(version=4, current_status=Status.ARRIVED, driver_id="d2")
    await zone.scripts.load_trip(zone.keys, trip, former_driver="d2")
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_1"
    await zone.driver("d2", trip_id="z_9")
    await zone.scripts.load_trip(zone.keys, make_trip(version=5), former_driver="d2")
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_9"


async def test_a_trip_may_come_before_its_driver(zone: Zone) -> None:
    trip = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d1")
    await zone.scripts.load_trip(zone.keys, trip)
    assert await zone.scripts.load_driver(zone.keys, make_driver(), fix=(50.1, 8.6, START_MS))
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_1"
    assert await geo(zone) == []


# --- load_driver


async def test_a_driver_is_loaded_and_never_taken_back(zone: Zone) -> None:
    load = zone.scripts.load_driver
    assert await load(zone.keys, make_driver(version=9))
    assert await load(zone.keys, make_driver(version=10, availability_status="unavailable"))
    before = await zone.dump()
    for version in (0, 9, 10):
        assert not await load(zone.keys, make_driver(version=version), fix=(1.0, 2.0, START_MS))
    assert await zone.dump() == before


async def test_the_last_known_place_is_loaded_where_none_is_known(zone: Zone) -> None:
    await zone.scripts.load_driver(zone.keys, make_driver(), fix=(50.1, 8.6, START_MS - 5))
    stored = await zone.hash(zone.keys.driver("d1"))
    assert (stored["lat"], stored["lng"], stored["fix_ms"]) == ("50.1", "8.6", str(START_MS - 5))
    assert await geo(zone) == ["d1"]
    newer = make_driver(version=1)
    await zone.scripts.load_driver(zone.keys, newer, fix=(1.0, 2.0, START_MS + 5))
    assert (await zone.hash(zone.keys.driver("d1")))["lat"] == "50.1"


@pytest.mark.parametrize(
    ("change", "seen"),
    [({"is_online": False}, False), ({"availability_status": "unavailable"}, True),
     ({"zone": "elsewhere"}, False)],
)  # fmt: skip
async def test_who_left_the_market_leaves_the_geo_set(
    zone: Zone, change: dict[str, Any], seen: bool
) -> None:
    await zone.scripts.load_driver(zone.keys, make_driver(), fix=(50.1, 8.6, START_MS))
    assert await zone.scripts.load_driver(zone.keys, make_driver(version=1, **change))
    assert await geo(zone) == []
    assert (await zone.redis.zscore(zone.keys.seen, "d1") is not None) == seen
    online = (await zone.hash(zone.keys.driver("d1")))["is_online"]
    assert online == ("1" if "availability_status" in change else "0")


async def test_who_is_loaded_out_of_the_market_does_not_enter_it(zone: Zone) -> None:
    await zone.scripts.load_driver(
        zone.keys, make_driver(availability_status="unavailable"), fix=(50.1, 8.6, START_MS)
    )
    await zone.scripts.load_driver(
        zone.keys, make_driver("d2", is_online=False), fix=(50.1, 8.6, START_MS)
    )
    assert await geo(zone) == []


# --- put_positions


async def put(zone: Zone, *fixes: tuple[str, float, float, int], vehicle: str = "car") -> Any:
    code, now_ms, results = await zone.scripts.put_positions(
        zone.keys, vehicle, fixes, fix_age_ms=FIX_AGE_MS
    )
    assert now_ms == zone.now_ms
    return code if code != "taken" else [placed[:2] for placed in results]


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
    assert await put(zone, ("d1", 50.1, 8.6, START_MS)) == "cold"
    assert await zone.dump() == before


async def test_each_fix_counts_against_its_own_limits(zone: Zone) -> None:
    await zone.driver("d1")
    names = ("d1", "d1", "d1", "nobody", "nobody")
    fixes = [(name, 50.1, 8.6, START_MS + i - 9) for i, name in enumerate(names)]
    limits = [
        [limit(2, name="location_update", subject=n), limit(4, name="ip", subject="10.0.0.1")]
        for n in names
    ]
    _, _, results = await zone.scripts.put_positions(
        zone.keys, "car", fixes, fix_age_ms=FIX_AGE_MS, limits=limits
    )
    assert [placed.word for placed in results] == [
        "taken", "taken", "rate_limited", "unknown", "unknown",
    ]  # fmt: skip
    states = [placed.limit for placed in results]
    assert [(s.name, s.remaining) for s in states if s] == [
        ("location_update", 1), ("location_update", 0), ("location_update", 0),
        ("location_update", 1), ("location_update", 0),
    ]  # fmt: skip
    own = zone.keys.limit("location_update", "d1")
    assert await zone.redis.llen(own) == 2, "a refused fix is not counted"
    assert await zone.redis.llen(zone.keys.limit("ip", "10.0.0.1")) == 4
    (refused,) = (await zone.scripts.put_positions(
        zone.keys, "car", [("d1", 51.0, 9.0, START_MS)], fix_age_ms=FIX_AGE_MS, limits=limits[:1]
    ))[2]  # fmt: skip
    assert refused.word == "rate_limited"
    assert (await zone.hash(zone.keys.driver("d1")))["fix_ms"] == str(START_MS - 8)
