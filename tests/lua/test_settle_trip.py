"""Settling a trip: the live state becomes what Postgres committed, in one step and never backwards."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.transitions import ACCEPT, ARRIVE, CANCEL, COMPLETE, EXPIRE, GIVE_BACK, START
from dispatcher.core.trips import Status, Trip
from dispatcher.live.settlement import SettleEffect, Settlement
from dispatcher.live.state import FINISHED_TTL_S
from tests.harness.lua_zone import FIX_AGE_MS, LEASE_MS, START_MS, Zone, key, make_trip
from tests.lua.claim_kinds import code_of
from tests.lua.settling import accepted, answer_of, geo, place, put_on_offer, settle, spy_on


async def test_an_accept_settles_everything_at_once(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1", "d2")
    await put_on_offer(zone, "d1", "d2")
    await zone.redis.zadd(zone.keys.inbox("d2"), {"z_7": START_MS + 9})
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS, "z_7": START_MS})
    attempt = zone.attempt(key=key())
    assert code_of(await zone.accept(attempt)) == "claimed"
    after = accepted(trip)
    assert await settle(
        zone, attempt, trip=after, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.TAKE,
        inboxes=["d1", "d2"], answer=answer_of("{}"), event='{"e":1}',
    )  # fmt: skip

    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == after
    assert await zone.redis.ttl(zone.keys.trip("z_1")) == -1
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_1"
    assert await geo(zone) == ["d2"]
    assert await zone.redis.exists(zone.keys.offers("z_1"), zone.keys.inbox("d1")) == 0
    assert await zone.redis.zrange(zone.keys.inbox("d2"), 0, -1) == ["z_7"]
    assert await zone.redis.zrange(zone.keys.waves, 0, -1) == ["z_7"]
    assert await zone.redis.get(attempt.record_key(zone.keys)) == "D f 200 {}"
    assert 0 < await zone.redis.pttl(attempt.record_key(zone.keys)) <= attempt.key_ttl_ms
    ((_, event),) = await zone.redis.xrange(zone.keys.events)
    assert event == {"event": '{"e":1}'}
    assert await zone.redis.keys("*:claim*") == []


async def test_older_and_equal_versions_change_nothing_of_the_trip(zone: Zone) -> None:
    now = await zone.trip(version=5, current_status=Status.ARRIVED, driver_id="d1")
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    await put_on_offer(zone, "d2")
    before = await zone.dump()
    for version in (0, 4, 5):
        old = make_trip(version=version, current_status=Status.CANCELLED)
        assert not await settle(
            zone,
            trip=old,
            driver_id="d1",
            driver_vehicle_type="car",
            effect=SettleEffect.FREE,
            inboxes=["d2"],
        )
    assert await zone.dump() == before
    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == now


async def test_versions_are_compared_as_numbers(zone: Zone) -> None:
    await zone.trip(version=9)
    assert await settle(zone, trip=make_trip(version=10))
    assert not await settle(zone, trip=make_trip(version=9))


async def test_a_late_settle_still_keeps_its_answer_and_event(zone: Zone) -> None:
    await zone.trip(version=5)
    attempt = zone.attempt(key=key())
    await settle(zone, attempt, trip=make_trip(version=1), answer=answer_of("{}"), event="{}")
    assert await zone.redis.get(attempt.record_key(zone.keys)) == "D f 200 {}"
    assert await zone.redis.xlen(zone.keys.events) == 1


async def test_claims_are_dropped_by_their_own_token_alone(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    late = zone.attempt()
    await zone.accept(late)
    # Its lease ran out, and another attempt holds the claims by now.
    other = zone.attempt()
    for name in (zone.keys.trip_claim("z_1"), zone.keys.driver_claim("d1")):
        await zone.redis.set(name, other.token, px=LEASE_MS)
    await zone.redis.zadd(zone.keys.claims, {other.entry: START_MS + LEASE_MS})
    await settle(zone, late)
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == other.token
    assert await zone.redis.get(zone.keys.driver_claim("d1")) == other.token
    assert await zone.redis.zrange(zone.keys.claims, 0, -1) == [other.entry]
    await settle(zone, other)
    assert await zone.redis.keys("*:claim*") == []


async def test_a_creation_starts_the_waves(zone: Zone) -> None:
    trip = make_trip()
    assert await settle(zone, trip=trip, event="{}")
    stored = await zone.hash(zone.keys.trip("z_1"))
    assert Trip.from_hash(stored) == trip
    assert (stored["round"], stored["waiting_since"]) == ("0", str(START_MS))
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


@pytest.mark.parametrize(
    ("transition", "status", "ends"),
    [(GIVE_BACK, Status.ACCEPTED, False), (CANCEL, Status.ACCEPTED, True),
     (COMPLETE, Status.ONGOING, True)],
)  # fmt: skip
async def test_a_driver_who_is_free_again(
    zone: Zone, transition: Any, status: Status, ends: bool
) -> None:
    trip = await zone.trip(current_status=status, driver_id="d1", version=2)
    await zone.driver("d1", trip_id="z_1", fix_ms=START_MS)
    await zone.redis.sadd(zone.keys.barred("z_1"), "d8")
    await zone.advance(FIX_AGE_MS - 1)
    after = transition.apply(trip, zone.now_ms)
    bars = "d1" if transition is GIVE_BACK else ""
    assert await settle(
        zone,
        trip=after,
        driver_id="d1",
        driver_vehicle_type="car",
        effect=SettleEffect.FREE,
        barred_driver=bars,
    )
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ""
    assert await geo(zone) == ["d1"], "back on offer"
    assert await zone.redis.zscore(zone.keys.seen, "d1") == START_MS
    due = await zone.redis.zscore(zone.keys.waves, "z_1")
    life_s = await zone.redis.ttl(zone.keys.trip("z_1"))
    barred = await zone.redis.smembers(zone.keys.barred("z_1"))
    if ends:
        assert (due, barred) == (None, set())
        assert 0 < life_s <= FINISHED_TTL_S
    else:
        assert (due, barred, life_s) == (zone.now_ms, {"d1", "d8"}, -1)
        assert (await zone.hash(zone.keys.trip("z_1")))["driver_id"] == ""


@pytest.mark.parametrize(
    "driver",
    [
        {"fix_ms": START_MS - FIX_AGE_MS},
        {"fix_ms": None},
        {"fix_ms": START_MS, "is_online": False},
        {"fix_ms": START_MS, "availability_status": "unavailable"},
    ],
)
async def test_who_may_not_be_offered_a_trip_stays_out_of_the_geo_set(
    zone: Zone, driver: dict[str, Any]
) -> None:
    trip = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await zone.driver("d1", trip_id="z_1", **driver)
    await place(zone, "d1")
    after = COMPLETE.apply(trip, START_MS)
    await settle(zone, trip=after, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.FREE)
    assert await geo(zone) == []
    seen = await zone.redis.zscore(zone.keys.seen, "d1")
    assert (seen is None) == (driver.get("is_online") is False)


async def test_only_its_own_trip_frees_a_driver(zone: Zone) -> None:
    trip = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await zone.driver("d1", trip_id="z_2", fix_ms=START_MS)
    after = COMPLETE.apply(trip, START_MS)
    await settle(zone, trip=after, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.FREE)
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_2"
    assert await geo(zone) == []


async def test_an_expiry_concerns_no_driver(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS})
    assert await settle(zone, trip=EXPIRE.apply(trip, START_MS))
    assert await zone.redis.exists(zone.keys.waves) == 0
    assert 0 < await zone.redis.ttl(zone.keys.trip("z_1")) <= FINISHED_TTL_S


async def test_changes_of_another_version_write_nothing(zone: Zone) -> None:
    """The live state missed a change: what differs is not enough, so the whole trip is sent."""
    before = await zone.trip("1")
    claimed = ACCEPT.apply(before, START_MS, driver_id="d1", driver_vehicle_type="car")
    arrived = ARRIVE.apply(claimed, START_MS + 1)
    ran = spy_on(zone)
    a = zone.attempt()
    settled = Settlement(trip=arrived, before=claimed, event="{}")
    assert await zone.settler.settle(zone.keys, a, settled)
    assert ran == [[-1], [1]]
    stored = await zone.hash(zone.keys.trip(before.id))
    assert Trip.from_hash(stored) == arrived
    assert await zone.redis.xlen(zone.keys.events) == 1, "told once"

    await zone.redis.delete(zone.keys.trip(before.id))
    settled = Settlement(trip=START.apply(arrived, START_MS + 2), before=arrived)
    assert await zone.settler.settle(zone.keys, a, settled)
    assert Trip.from_hash(await zone.hash(zone.keys.trip(before.id))) == settled.trip
    assert ran == [[-1], [1], [-1], [1]]
