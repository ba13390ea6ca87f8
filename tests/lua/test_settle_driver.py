"""Settling a driver: their own availability, and the offers that they decline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from dispatcher.core.transitions import COMPLETE, GIVE_BACK
from dispatcher.core.trips import Status
from dispatcher.live.positions import DriverFix
from dispatcher.live.settlement import SettleEffect
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone, make_driver
from tests.lua.settling import accepted, geo, listening, place, put_on_offer, settle


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


async def withdrawn(zone: Zone, **changes: Any) -> list[tuple[str, list[str]]]:
    """Settles a change of d1, who holds offers of z_1, z_2 and z_3; what was withdrawn."""
    told: list[tuple[str, list[str]]] = []

    def told_of(driver_id: str, trips: Sequence[str], at_ms: int) -> None:
        told.append((driver_id, sorted(trips)))
        assert at_ms == START_MS

    zone.settler.on_withdrawn(told_of)
    for trip_id in ("z_1", "z_2", "z_3"):
        await put_on_offer(zone, "d1", trip_id=trip_id)
    await put_on_offer(zone, "d2", trip_id="z_3")
    await zone.redis.zadd(zone.keys.waves, {"z_2": START_MS + 9_000, "z_3": START_MS + 9_000})
    await settle(zone, driver_id="d1", driver_vehicle_type="car", **changes)
    await asyncio.gather(*zone.settler._tasks)
    return told


async def test_who_takes_a_trip_frees_their_other_offers(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.driver("d1")
    took = {"trip": accepted(trip), "effect": SettleEffect.TAKE, "inboxes": ["d1"]}
    assert await withdrawn(zone, **took) == [("d1", ["z_2", "z_3"])]
    assert await zone.redis.exists(zone.keys.inbox("d1"), zone.keys.offers("z_2")) == 0
    assert await zone.redis.zrange(zone.keys.offers("z_3"), 0, -1) == ["d2"]
    due = await zone.redis.zrange(zone.keys.waves, 0, -1, withscores=True)
    assert due == [("z_2", START_MS), ("z_3", START_MS + 9_000)], "z_2 looks for others at once"


@pytest.mark.parametrize("change", [{"is_online": False}, {"availability_status": "unavailable"}])
async def test_who_leaves_frees_their_offers(zone: Zone, change: dict[str, Any]) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    driver = make_driver("d1", version=1, **change)
    others = ["z_2", "z_3"]  # z_1 is the attempt's
    left = await withdrawn(zone, effect=SettleEffect.STATE, driver=driver)
    assert left == [("d1", others)]
    assert await zone.redis.exists(zone.keys.inbox("d1")) == 0
    assert await zone.redis.zrange(zone.keys.offers("z_3"), 0, -1) == ["d2"]


async def test_who_stays_keeps_their_offers(zone: Zone) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    driver = make_driver("d1", version=1)
    assert await withdrawn(zone, effect=SettleEffect.STATE, driver=driver) == []
    assert await zone.redis.zcard(zone.keys.inbox("d1")) == 3


async def test_a_driver_is_told_which_offers_they_hold_no_more(zone: Zone, redis_url: str) -> None:
    if "Fake" in type(zone.redis).__name__:
        pytest.skip("fakeredis has no sharded channels across clients")
    await zone.driver("d1", fix_ms=START_MS)
    await put_on_offer(zone, "d1", trip_id="z_2")
    async with listening(zone, redis_url, "driver:d1") as heard:
        driver = make_driver("d1", version=1, is_online=False)
        await settle(
            zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
        )
        _, frame = await heard()
        assert orjson.loads(frame) == {
            "type": "offer_withdrawn", "trip_request_id": "z_2", "reason": "driver_not_available"
        }  # fmt: skip


async def test_the_hash_of_a_driver_who_has_left_ends(zone: Zone) -> None:
    async def change(version: int, **columns: Any) -> int:
        driver = make_driver("d1", version=version, **columns)
        await settle(
            zone, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
        )
        return int(await zone.redis.ttl(zone.keys.driver("d1")))

    assert await change(0) == -1
    assert 0 < await change(1, is_online=False) <= 3_600
    assert await change(2) == -1
    # Who is on a trip is needed for its end.
    await zone.redis.hset(zone.keys.driver("d1"), "trip_id", "z_1")
    assert await change(3, is_online=False) == -1
    trip = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await settle(
        zone, trip=COMPLETE.apply(trip, START_MS), driver_id="d1", driver_vehicle_type="car",
        effect=SettleEffect.FREE,
    )  # fmt: skip
    assert 0 < await zone.redis.ttl(zone.keys.driver("d1")) <= 3_600
