"""Settling a driver: their own availability, and the offers that they decline."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.transitions import GIVE_BACK
from dispatcher.core.trips import Status
from dispatcher.live.positions import DriverFix
from dispatcher.live.settle import SettleEffect
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone, make_driver
from tests.lua.settling import geo, place, put_on_offer, settle


async def test_going_online_with_a_fresh_fix(zone: Zone) -> None:
    await zone.driver("d1", is_online=False, fix_ms=START_MS)
    driver = make_driver("d1", version=1)
    await settle(
        zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
    )
    assert await geo(zone) == ["d1"]
    assert (await zone.hash(zone.keys.driver("d1")))["is_online"] == "1"


async def test_a_driver_never_seen_before(zone: Zone) -> None:
    driver = make_driver("d1")
    await settle(
        zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
    )
    assert (await zone.hash(zone.keys.driver("d1")))["version"] == "0"
    assert await geo(zone) == []


@pytest.mark.parametrize("change", [{"is_online": False}, {"availability_status": "unavailable"}])
async def test_leaving_the_market(zone: Zone, change: dict[str, Any]) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    driver = make_driver("d1", version=1, **change)
    await settle(
        zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
    )
    assert await geo(zone) == []
    assert (await zone.redis.zscore(zone.keys.seen, "d1") is None) == ("is_online" in change)


async def test_an_older_state_of_the_driver_is_not_written(zone: Zone) -> None:
    await zone.driver("d1", version=3, fix_ms=START_MS)
    for version in (2, 3):
        driver = make_driver("d1", version=version, is_online=False)
        await settle(
            zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
        )
    assert (await zone.hash(zone.keys.driver("d1")))["is_online"] == "1"
    assert await geo(zone) == ["d1"]


async def test_another_vehicle_leaves_the_old_one_s_geo_set(zone: Zone) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    driver = make_driver("d1", version=1, vehicle_type="van")
    await settle(
        zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
    )
    assert await geo(zone) == [], "a van is no car"
    fixes = [DriverFix("d1", 50.2, 8.7, zone.now_ms + 1)]
    await zone.advance(2)
    await zone.positions.put_positions(zone.keys, "van", fixes, fix_age_ms=FIX_AGE_MS)
    assert await geo(zone, "van") == ["d1"]


async def test_offline_with_a_trip_to_release(zone: Zone) -> None:
    trip = await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    driver = make_driver("d1", version=1, is_online=False)
    assert await settle(
        zone, trip=GIVE_BACK.apply(trip, START_MS), driver_id="d1", driver_vehicle_type="car",
        effect=SettleEffect.FREE, driver=driver, barred_driver="d1",
    )  # fmt: skip
    stored = await zone.hash(zone.keys.driver("d1"))
    assert (stored["is_online"], stored["trip_id"]) == ("0", "")
    assert (await zone.hash(zone.keys.trip("z_1")))["current_status"] == "pending"
    assert await geo(zone) == []


async def decline(zone: Zone, name: str) -> None:
    attempt = zone.attempt("z_1", name)
    await settle(zone, attempt, barred_driver=name, inboxes=[name])


async def test_the_last_decline_makes_the_next_wave_due(zone: Zone) -> None:
    await zone.trip()
    before = await zone.hash(zone.keys.trip("z_1"))
    await put_on_offer(zone, "d1", "d2")
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS + 15_000})
    await decline(zone, "d1")
    assert await zone.redis.zrange(zone.keys.offers("z_1"), 0, -1) == ["d2"]
    assert await zone.redis.exists(zone.keys.inbox("d1")) == 0
    assert await zone.redis.exists(zone.keys.inbox("d2")) == 1
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS + 15_000
    await zone.advance(100)
    await decline(zone, "d2")
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS + 100
    assert await zone.redis.smembers(zone.keys.barred("z_1")) == {"d1", "d2"}
    assert 0 < await zone.redis.ttl(zone.keys.barred("z_1")) <= 86_400
    assert await zone.hash(zone.keys.trip("z_1")) == before


async def test_an_expired_offer_keeps_no_wave_waiting(zone: Zone) -> None:
    await zone.trip()
    await put_on_offer(zone, "d1")
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d2": START_MS - 1})
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS + 15_000})
    await decline(zone, "d1")
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


async def test_a_decline_starts_no_wave_of_a_trip_that_has_none(zone: Zone) -> None:
    await zone.trip()
    await put_on_offer(zone, "d1")
    await decline(zone, "d1")
    await decline(zone, "d9")  # never had an offer
    assert await zone.redis.exists(zone.keys.waves) == 0
    assert await zone.redis.smembers(zone.keys.barred("z_1")) == {"d1", "d9"}
