"""Queues in Redis: the order of arrival is kept, whatever drivers do, and a place ends when it should."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.transitions import COMPLETE
from dispatcher.core.trips import Status
from dispatcher.live.offers import Candidate
from dispatcher.live.positions import DriverFix, QueueAt
from dispatcher.live.queues import PlaceInQueue, QueueScripts, SavedPlace
from dispatcher.live.settlement import SettleEffect
from dispatcher.live.state import Fix
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone, make_driver, open_zone
from tests.lua.settling import accepted, listening, settle

ABSENCE_MS = 50_000
#: The longest absence that a zones file may grant.
LONGEST_ABSENCE_MS = 3_600_000
AT = {name: QueueAt(name, ABSENCE_MS) for name in ("a", "b")}


def queues_of(zone: Zone) -> QueueScripts:
    return QueueScripts(zone.pipeline)


async def seen(zone: Zone, name: str, queue: str | None, *, vehicle: str = "car") -> str:
    """A driver is seen at a queue's place, or at none's; says where they hold a place and are."""
    fix = DriverFix(name, 50.1, 8.6, None)
    (result,) = await zone.positions.put_positions(
        zone.keys, vehicle, [fix], fix_age_ms=FIX_AGE_MS, queues=[AT[queue] if queue else None]
    )
    return result.queue


async def order(zone: Zone, queue: str = "a", vehicle: str = "car") -> list[str]:
    """Who holds a place in the queue, in its order, once it has been numbered."""
    scripts = queues_of(zone)
    names = await scripts.drivers(zone.keys, queue, vehicle, most=99)
    count = await scripts.number_queue(zone.keys, queue, vehicle, names, before=0)
    left = await scripts.drivers(zone.keys, queue, vehicle, most=99)
    assert count.standing == len(left)
    numbers = [(await zone.hash(zone.keys.driver(name)))["queue_number"] for name in left]
    assert numbers == [str(i) for i in range(1, len(left) + 1)]
    return left


async def changes(zone: Zone, name: str, version: int, **columns: Any) -> None:
    """A driver's availability changes."""
    await settle(
        zone, driver_id=name, driver_vehicle_type="car", effect=SettleEffect.STATE,
        driver=make_driver(name, version=version, **columns),
    )  # fmt: skip


async def test_drivers_stand_in_the_order_in_which_they_came(zone: Zone) -> None:
    for name in ("d3", "d1", "d2"):
        await zone.driver(name)
        assert await seen(zone, name, "a") == "a"
    assert await order(zone) == ["d3", "d1", "d2"], "though all came within one ms"
    for name in ("d2", "d3"):
        await zone.advance(1_000)
        await seen(zone, name, "a")
    assert await order(zone) == ["d3", "d1", "d2"], "to be seen there again changes nothing"
    place = await queues_of(zone).place_of(zone.keys, "d1")
    assert place == PlaceInQueue("a", 2, START_MS + 1)
    assert await queues_of(zone).place_of(zone.keys, "nobody") is None


async def test_a_short_absence_keeps_the_place_and_a_longer_one_loses_it(zone: Zone) -> None:
    for name in ("d1", "d2"):
        await zone.driver(name)
        await seen(zone, name, "a")
    await zone.advance(ABSENCE_MS - 1)
    assert await seen(zone, "d1", None) == ""
    assert await order(zone) == ["d1", "d2"], "they may have gone for a coffee"
    assert await seen(zone, "d1", "a") == "a"
    await zone.advance(ABSENCE_MS - 1)
    assert await order(zone) == ["d1"], "d2 was not seen there for so long, wherever they are"
    await seen(zone, "d2", "a")
    await seen(zone, "d1", "a")
    assert await order(zone) == ["d1", "d2"]
    await zone.advance(ABSENCE_MS)
    await seen(zone, "d2", "a")
    await seen(zone, "d1", "a")
    assert await order(zone) == ["d2", "d1"], "who comes back later stands at the end"


async def test_a_driver_stands_in_one_queue_at_a_time(zone: Zone) -> None:
    await zone.driver("d1")
    await seen(zone, "d1", "a")
    assert await seen(zone, "d1", "b") == "", "they are in b for a moment, and hold a place in a"
    assert (await order(zone, "a"), await order(zone, "b")) == (["d1"], [])
    await zone.advance(ABSENCE_MS)
    assert await seen(zone, "d1", "b") == "b"
    assert (await order(zone, "a"), await order(zone, "b")) == ([], ["d1"])


@pytest.mark.parametrize(
    "away", [{"is_online": False}, {"availability_status": AvailabilityStatus.UNAVAILABLE}]
)
async def test_who_stops_working_loses_the_place(zone: Zone, away: dict[str, Any]) -> None:
    for name in ("d1", "d2"):
        await zone.driver(name)
        await seen(zone, name, "a")
    await changes(zone, "d1", 1, **away)
    assert await queues_of(zone).place_of(zone.keys, "d1") is None
    await changes(zone, "d1", 2)
    await seen(zone, "d1", "a")
    assert await order(zone) == ["d2", "d1"], "though nobody looked in between"


async def test_who_takes_a_trip_loses_the_place(zone: Zone) -> None:
    for name in ("d1", "d2"):
        await zone.driver(name)
        await seen(zone, name, "a")
    trip = await zone.trip()
    taken = accepted(trip)
    await settle(
        zone, trip=taken, before=trip, driver_id="d1", driver_vehicle_type="car",
        effect=SettleEffect.TAKE,
    )  # fmt: skip
    await seen(zone, "d1", "a")
    ongoing = taken._replace(current_status=Status.ONGOING)
    done = COMPLETE.apply(ongoing, START_MS)
    await settle(zone, trip=done, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.FREE)
    await seen(zone, "d1", "a")
    assert await order(zone) == ["d2", "d1"]


async def test_an_availability_that_stays_keeps_the_place_and_so_does_another_vehicle(
    zone: Zone,
) -> None:
    for name in ("d1", "d2"):
        await zone.driver(name)
        await seen(zone, name, "a")
    await changes(zone, "d1", 1)
    assert await order(zone) == ["d1", "d2"]
    await zone.driver("v1", vehicle_type="van")
    await seen(zone, "v1", "a", vehicle="van")
    await changes(zone, "d1", 2, vehicle_type="van")
    await seen(zone, "d1", "a", vehicle="van")
    assert await order(zone) == ["d2"]
    assert await order(zone, vehicle="van") == ["d1", "v1"], "they had arrived before"


async def test_a_clock_that_steps_back_turns_no_queue_over(zone: Zone) -> None:
    for name in ("d1", "d2", "d3"):
        await zone.driver(name)
    await seen(zone, "d1", "a")
    await zone.advance(-3_000_000)
    await seen(zone, "d2", "a")
    await seen(zone, "d1", "a")
    await zone.advance(10)
    await seen(zone, "d3", "a")
    assert await order(zone) == ["d1", "d2", "d3"]


@pytest.mark.parametrize("back_ms", [600_000, 3_600_000, 86_400_000])
async def test_a_clock_that_steps_back_far_costs_nobody_the_place(zone: Zone, back_ms: int) -> None:
    names = ["d1", "d2", "d3", "d4"]
    for name in names:
        await zone.driver(name)
        await seen(zone, name, "a")
    await zone.advance(-back_ms)
    for name in names[:0:-1]:
        assert await seen(zone, name, "a") == "a"
    assert await order(zone) == names
    # Of d1, who is gone, it is not known for how long: they have no longer than any queue grants.
    await zone.advance(LONGEST_ABSENCE_MS)
    for name in names[1:]:
        await seen(zone, name, "a")
    assert "d1" not in await order(zone)


async def test_who_must_be_told_is_told_once(redis_url: str) -> None:
    async with (
        open_zone("valkey", redis_url) as zone,
        listening(zone, redis_url, "driver:d1", "driver:d2") as heard,
    ):
        for name in ("d1", "d2"):
            await zone.driver(name)
            await seen(zone, name, "a")
        await order(zone)
        told = [await heard() for _ in range(2)]
        positions = [(to, orjson.loads(frame)["position"]) for to, frame in told]
        assert positions == [("driver:d1", 1), ("driver:d2", 2)]
        await order(zone)
        await changes(zone, "d1", 1, is_online=False)
        await order(zone)
        told = [(to, orjson.loads(frame)) for to, frame in [await heard() for _ in range(2)]]
        nothing = {"type": "queue", "queue": None, "position": None, "queued_at_ms": None}
        up = {"type": "queue", "queue": "a", "position": 1, "queued_at_ms": START_MS + 1}
        assert told == [("driver:d1", nothing), ("driver:d2", up)]


async def test_a_place_that_postgres_knows_comes_back_once(zone: Zone) -> None:
    here, saved = Fix(50.1, 8.6, START_MS), SavedPlace("a", START_MS - 9_000, ABSENCE_MS)
    await zone.driver("d2")
    await seen(zone, "d2", "a")
    await zone.state.load_driver(zone.keys, make_driver("d1"), fix=here, place=saved)
    assert await order(zone) == ["d1", "d2"]
    await changes(zone, "d1", 1, is_online=False)
    await changes(zone, "d1", 2)
    # What Postgres has not been told yet, Redis knows better.
    await zone.state.load_driver(zone.keys, make_driver("d1", version=3), fix=here, place=saved)
    assert await order(zone) == ["d2"]
    off = make_driver("d3", is_online=False)
    await zone.state.load_driver(zone.keys, off, place=saved)
    assert await order(zone) == ["d2"]


async def test_only_who_holds_the_place_is_asked_for_it(zone: Zone) -> None:
    trip = await zone.trip()
    for name in ("d1", "d2", "d3"):
        await zone.driver(name, fix_ms=START_MS)
        await zone.redis.zadd(zone.keys.present, {f"driver:{name}": START_MS + 900_000})
        if name != "d3":
            await seen(zone, name, "a")
    await changes(zone, "d1", 1, is_online=False)
    await changes(zone, "d1", 2)
    names = [Candidate(name, 5_000.0) for name in ("d1", "d2", "d3")]
    offered = []
    for _ in range(2):
        result = await zone.offers.offer_trip(
            zone.keys, trip, "{}", names, round_number=0, size=3, answer_ms=12_000, again_ms=1_000,
            max_open_offers=3, fix_age_ms=FIX_AGE_MS, max_wait_ms=60_000, ask_again=False,
            head_start_ms=5_000, queue="a", queued=2,
        )  # fmt: skip
        offered.append((result.wave, result.offered))
        await zone.advance(5_000)
    # d1 came back to the market, and not yet to the place; d3 is asked as one who is near.
    assert offered == [(1, ["d2"]), (1, ["d3"])], "the head start of the first, then the same wave"
    assert (await zone.hash(zone.keys.trip(trip.id)))["queue"] == "a"


class _Model:
    """The rules in plain words: who is free, when they arrived where, and until when they keep it."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.arrivals = 0
        self.free = {f"d{i}": True for i in range(4)}
        self.places: dict[str, tuple[str, int, int]] = {}

    def seen(self, name: str, queue: str | None) -> None:
        if not self.free[name] or queue is None:
            return
        held, arrival, until_ms = self.places.get(name, ("", 0, 0))
        if until_ms <= self.now_ms:
            self.arrivals += 1
            held, arrival = queue, self.arrivals
        if held == queue:
            self.places[name] = (held, arrival, self.now_ms + ABSENCE_MS)

    def order(self, queue: str) -> list[str]:
        standing = [
            (arrival, name)
            for name, (held, arrival, until_ms) in self.places.items()
            if held == queue and until_ms > self.now_ms
        ]
        return [name for _, name in sorted(standing)]


_DRIVERS = st.sampled_from(["d0", "d1", "d2", "d3"])
_STEPS = st.one_of(
    st.tuples(st.just("seen"), _DRIVERS, st.sampled_from(["a", "b", None])),
    st.tuples(st.just("seen"), _DRIVERS, st.just("a")),
    st.tuples(st.just("turn"), _DRIVERS),
    st.tuples(st.just("wait"), st.sampled_from([0, 1_000, ABSENCE_MS // 2, ABSENCE_MS])),
    st.tuples(st.just("number")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(_STEPS, min_size=5, max_size=30))
def test_the_order_of_arrival_is_kept(steps: list[tuple[Any, ...]]) -> None:
    async def walk() -> None:
        async with open_zone("fakeredis", "") as zone:
            model = _Model()
            versions = dict.fromkeys(model.free, 0)
            for name in model.free:
                await zone.driver(name)
            for what, *more in steps:
                if what == "seen":
                    await seen(zone, *more)
                    model.seen(*more)
                elif what == "wait":
                    await zone.advance(more[0])
                    model.now_ms += more[0]
                elif what == "turn":
                    (name,) = more
                    model.free[name] = not model.free[name]
                    model.places.pop(name, None)
                    versions[name] += 1
                    await changes(zone, name, versions[name], is_online=model.free[name])
                else:
                    for queue in AT:
                        assert await order(zone, queue) == model.order(queue)
            for queue in AT:
                assert await order(zone, queue) == model.order(queue)

    asyncio.run(walk())
