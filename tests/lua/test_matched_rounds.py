"""A round of matching is one server's at a time, and its matched driver is asked before the wave goes on."""

from __future__ import annotations

from typing import Any

from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.trips import Status, Trip
from dispatcher.live.offers import Candidate, WaveResult
from dispatcher.live.settlement import SettleEffect
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone, make_driver, make_trip
from tests.lua.settling import place, settle

EVERY_MS = 3_000
NAMES = ("d1", "d2", "d3")


async def with_drivers(zone: Zone, *names: str, **columns: Any) -> None:
    for name in names:
        await zone.driver(name, fix_ms=START_MS, **columns)
        await zone.redis.zadd(zone.keys.present, {f"driver:{name}": START_MS + 900_000})
    await place(zone, *names)


async def waits(zone: Zone, *suffixes: str) -> list[Trip]:
    trips = [await zone.trip(suffix) for suffix in suffixes]
    for trip in trips:
        await zone.redis.zadd(zone.keys.waves, {trip.id: zone.now_ms})
    return trips


async def offer(zone: Zone, trip: Trip, *names: str, **more: Any) -> WaveResult:
    usual: dict[str, Any] = {
        "round_number": 0, "size": 2, "answer_ms": 12_000, "again_ms": 1_000, "max_open_offers": 3,
        "fix_age_ms": FIX_AGE_MS, "max_wait_ms": 60_000, "ask_again": False,
    }  # fmt: skip
    candidates = [Candidate(name, 100.0) for name in names]
    return await zone.offers.offer_trip(zone.keys, trip, "{}", candidates, **(usual | more))


async def due_in_ms(zone: Zone, trip: Trip) -> float:
    return float(await zone.redis.zscore(zone.keys.waves, trip.id)) - zone.now_ms


async def test_a_zone_has_one_round_at_a_time(zone: Zone) -> None:
    first, second = await waits(zone, "1", "2")
    start = await zone.matching.begin_round(zone.keys, [first.id], every_ms=EVERY_MS)
    assert (start.fence, start.next_ms - start.now_ms) == (1, EVERY_MS)
    await zone.advance(1_000)
    early = await zone.matching.begin_round(zone.keys, [second.id], every_ms=EVERY_MS)
    assert early.fence == 0
    for trip in (first, second):
        assert await due_in_ms(zone, trip) == 2_000, "both are due at the next one, whoever fails"
    await zone.advance(2_000)
    assert (await zone.offers.claim_waves(zone.keys)).trip_ids == [first.id, second.id]
    again = await zone.matching.begin_round(zone.keys, [first.id, second.id], every_ms=EVERY_MS)
    assert again.fence == 2


async def test_a_clock_that_steps_back_does_not_put_rounds_off(zone: Zone) -> None:
    await zone.matching.begin_round(zone.keys, [], every_ms=EVERY_MS)
    await zone.advance(-3_600_000)
    assert (await zone.matching.begin_round(zone.keys, [], every_ms=EVERY_MS)).fence == 2


async def test_a_trip_that_ended_is_not_put_back_by_a_round(zone: Zone) -> None:
    await zone.matching.begin_round(zone.keys, ["z_gone"], every_ms=EVERY_MS)
    assert await zone.redis.zcard(zone.keys.waves) == 0


async def test_who_has_moved_out_of_the_rounds_reach_is_passed_over(zone: Zone) -> None:
    await with_drivers(zone, *NAMES)
    (trip,) = await waits(zone, "1")
    start = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    for name, north in zip(NAMES, (0.25, 0.0541, 0.053), strict=True):
        where = {"lat": trip.pickup_lat + north, "lng": trip.pickup_lng}
        await zone.redis.hset(zone.keys.driver(name), mapping=where)
    result = await offer(zone, trip, *NAMES, fence=start.fence, reach_m=6_000.0)
    assert result.offered == ["d3"], "d1 is at 28 km by now, d2 at 6,017 m"
    await zone.redis.hdel(zone.keys.driver("d1"), "lat")
    result = await offer(zone, trip, "d1", fence=start.fence, reach_m=6_000.0, round_number=1)
    assert result.offered == []


async def test_what_an_earlier_round_still_plans_is_void(zone: Zone) -> None:
    await with_drivers(zone, *NAMES)
    (trip,) = await waits(zone, "1")
    slow = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    await zone.advance(EVERY_MS)
    quick = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    assert (await offer(zone, trip, "d1", fence=slow.fence)).code == "moved"
    assert (await offer(zone, trip, "d2", fence=quick.fence)).offered == ["d2"]


async def test_a_trip_without_a_match_takes_part_in_the_next_round(zone: Zone) -> None:
    (trip,) = await waits(zone, "1")
    start = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    await zone.advance(700)
    assert (await offer(zone, trip, fence=start.fence)).code == "nobody"
    assert await due_in_ms(zone, trip) == EVERY_MS - 700
    assert (await zone.hash(zone.keys.trip(trip.id)))["round"] == "1", "it reaches further then"


async def test_the_matched_driver_has_a_head_start_and_the_same_wave_goes_on(zone: Zone) -> None:
    await with_drivers(zone, *NAMES)
    (trip,) = await waits(zone, "1")
    start = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    first = await offer(zone, trip, *NAMES, fence=start.fence, head_start_ms=5_000)
    assert (first.code, first.wave, first.offered) == ("offered", 1, ["d1"])
    assert first.deadline_ms == zone.now_ms + 12_000, "the head start is no shorter an offer"
    assert await due_in_ms(zone, trip) == 5_000
    assert (await offer(zone, trip, *NAMES, fence=start.fence, head_start_ms=5_000)).code == "moved"
    await zone.advance(5_000)
    rest = await offer(zone, trip, *NAMES)
    assert (rest.code, rest.wave, rest.offered) == ("offered", 1, ["d2"]), "two at most hold an offer"
    assert await due_in_ms(zone, trip) == 12_000
    await zone.advance(12_000)
    after = await offer(zone, trip, *NAMES, round_number=1)
    assert (after.wave, after.offered, sorted(after.expired)) == (2, ["d3"], ["d1", "d2"])


async def test_who_is_not_eligible_any_more_is_skipped(zone: Zone) -> None:
    await with_drivers(zone, "d1", trip_id="z_9")
    await with_drivers(zone, "d2", "d3")
    (trip,) = await waits(zone, "1")
    start = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    result = await offer(zone, trip, *NAMES, fence=start.fence, head_start_ms=5_000)
    assert result.offered == ["d2"]


async def test_a_head_start_is_no_longer_than_the_offer(zone: Zone) -> None:
    await with_drivers(zone, "d1")
    (trip,) = await waits(zone, "1")
    await offer(zone, trip, "d1", answer_ms=2_000, head_start_ms=5_000)
    assert await due_in_ms(zone, trip) == 2_000


async def test_scarcity_is_told_with_what_is_due_and_ends(zone: Zone) -> None:
    (trip,) = await waits(zone, "1")
    assert not (await zone.offers.claim_waves(zone.keys, again_ms=0)).scarce
    await zone.matching.keep_scarce(zone.keys, "car", zone.now_ms + 15_000)
    due = await zone.offers.claim_waves(zone.keys, again_ms=0)
    assert (due.trip_ids, due.scarce) == ([trip.id], {"car"})
    await zone.advance(15_000)
    assert not (await zone.offers.claim_waves(zone.keys, again_ms=0)).scarce


async def test_a_round_knows_what_the_filters_know(zone: Zone) -> None:
    await with_drivers(zone, "d1")
    await zone.driver("d2", is_online=False, fix_ms=START_MS - 5)
    await zone.redis.zadd(zone.keys.inbox("d1"), {"z_8": zone.now_ms, "z_9": zone.now_ms + 1})
    await zone.redis.hset(zone.keys.turned_down, "d1", 2)
    names = ["d1", "d2", "unknown"]
    near, offline = await zone.matching.nearby(zone.keys, names, max_wait_ms=60_000)
    assert (near.driver_id, near.lat, near.lng, near.vehicle_type) == ("d1", 50.1, 8.6, "car")
    assert (near.open_offers, near.turned_down, near.fix_ms) == (1, 2, START_MS)
    checks = {"fix_age_ms": FIX_AGE_MS, "max_open_offers": 3}
    assert near.may_be_offered(zone.now_ms, **checks)
    assert not offline.may_be_offered(zone.now_ms, **checks)
    assert offline.present_until_ms == 0


async def test_a_round_knows_who_may_not_have_a_trip(zone: Zone) -> None:
    (trip,) = await waits(zone, "1")
    await zone.redis.sadd(zone.keys.barred(trip.id), "d1")
    await zone.redis.sadd(zone.keys.passed(trip.id), "d2")
    await zone.redis.zadd(zone.keys.offers(trip.id), {"d3": zone.now_ms, "d4": zone.now_ms + 1})
    names = [trip.id, "z_gone"]
    known, unknown = await zone.matching.waiting(zone.keys, names, max_wait_ms=60_000)
    assert (known.hash_["id"], known.open_offers) == (trip.id, 1)
    assert (known.barred, known.passed) == ({"d1"}, {"d2", "d3"})
    assert unknown.hash_ == {}


async def test_an_offer_of_a_clock_that_stepped_back_is_over_for_a_round_too(zone: Zone) -> None:
    await with_drivers(zone, "d1")
    (trip,) = await waits(zone, "1")
    await offer(zone, trip, "d1")
    await zone.matching.keep_scarce(zone.keys, "car", zone.now_ms + 15_000)
    await zone.advance(-3_600_000)
    (known,) = await zone.matching.waiting(zone.keys, [trip.id], max_wait_ms=60_000)
    assert (known.open_offers, known.passed) == (0, {"d1"})
    (driver,) = await zone.matching.nearby(zone.keys, ["d1"], max_wait_ms=60_000)
    assert driver.open_offers == 0
    due = await zone.offers.claim_waves(zone.keys)
    assert (due.trip_ids, due.scarce) == ([trip.id], set())
    start = await zone.matching.begin_round(zone.keys, [trip.id], every_ms=EVERY_MS)
    again = {"round_number": 1, "ask_again": True, "fence": start.fence, "head_start_ms": 5_000}
    result = await offer(zone, trip, "d1", **again)
    assert (result.code, result.offered, result.expired) == ("offered", ["d1"], ["d1"])
    assert await due_in_ms(zone, trip) == 5_000


async def test_offers_that_a_driver_turned_down_are_counted_until_they_take_a_trip(zone: Zone) -> None:
    async def turned_down() -> dict[str, str]:
        return await zone.hash(zone.keys.turned_down)

    await with_drivers(zone, "d1", "d2")
    (trip,) = await waits(zone, "1")
    await offer(zone, trip, "d1", "d2")
    await settle(zone, barred_driver="d2", inboxes=["d2"])
    assert await turned_down() == {"d2": "1"}
    await settle(zone, zone.attempt(driver_id="d3"), barred_driver="d3", inboxes=["d3"])
    assert await turned_down() == {"d2": "1"}, "nobody asked d3"
    await zone.advance(12_000)
    await offer(zone, trip, round_number=1)
    assert await turned_down() == {"d1": "1", "d2": "1"}
    taken = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d1")
    await settle(zone, trip=taken, before=trip, driver_id="d1", driver_vehicle_type="car",
                 effect=SettleEffect.TAKE)  # fmt: skip
    assert await turned_down() == {"d2": "1"}
    await settle(zone, zone.attempt("", "d2"), driver_id="d2", driver_vehicle_type="car",
                 effect=SettleEffect.STATE, driver=make_driver("d2", is_online=False, version=1))  # fmt: skip
    assert await turned_down() == {}


async def test_a_driver_is_idle_from_when_they_could_be_asked(zone: Zone) -> None:
    async def free_since() -> str | None:
        return (await zone.hash(zone.keys.driver("d1"))).get("free_since")

    async def becomes(version: int, **columns: Any) -> None:
        await settle(zone, zone.attempt("", "d1"), driver_id="d1", driver_vehicle_type="car",
                     effect=SettleEffect.STATE, driver=make_driver("d1", version=version, **columns))  # fmt: skip

    await becomes(1)
    assert await free_since() == str(START_MS)
    await zone.advance(1_000)
    await becomes(2)
    assert await free_since() == str(START_MS), "they were free already"
    await becomes(3, availability_status=AvailabilityStatus.UNAVAILABLE)
    await zone.advance(1_000)
    await becomes(4)
    assert await free_since() == str(START_MS + 2_000)
    ride = await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    await zone.redis.hset(zone.keys.driver("d1"), "trip_id", ride.id)
    await zone.advance(1_000)
    done = make_trip(version=4, current_status=Status.COMPLETED, driver_id="d1")
    await settle(zone, trip=done, before=ride, driver_id="d1", driver_vehicle_type="car",
                 effect=SettleEffect.FREE)  # fmt: skip
    assert await free_since() == str(START_MS + 3_000)
