"""Loading the live state from Postgres, version by version."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.trips import Status, Trip
from dispatcher.live.state import FINISHED_TTL_S, Fix
from tests.harness.lua_zone import START_MS, Zone, make_driver, make_trip
from tests.lua.settling import geo, put_on_offer


async def test_a_trip_is_loaded_and_never_taken_back(zone: Zone) -> None:
    load = zone.state.load_trip
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
    assert await zone.state.load_trip(zone.keys, trip)
    assert Trip.from_hash(await zone.hash(zone.keys.trip("z_1"))) == trip
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ("z_1" if bound else "")
    life_s = await zone.redis.ttl(zone.keys.trip("z_1"))
    assert (0 < life_s <= FINISHED_TTL_S) if ended else life_s == -1
    due = await zone.redis.zscore(zone.keys.waves, "z_1")
    assert due == (START_MS + 9_000 if status is Status.PENDING else None), "a planned wave stays"


async def test_a_pending_trip_without_a_wave_is_due_now(zone: Zone) -> None:
    await zone.state.load_trip(zone.keys, make_trip())
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS


async def test_a_trip_that_lost_its_wave_gets_one_though_it_is_as_new(zone: Zone) -> None:
    await zone.state.load_trip(zone.keys, make_trip())
    await zone.redis.delete(zone.keys.waves)
    assert not await zone.state.load_trip(zone.keys, make_trip())
    assert await zone.redis.zscore(zone.keys.waves, "z_1") == START_MS
    # Somebody was faster than Postgres' row.
    taken = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d1")
    await zone.state.load_trip(zone.keys, taken)
    assert not await zone.state.load_trip(zone.keys, make_trip())
    assert await zone.redis.zcard(zone.keys.waves) == 0


async def test_a_trip_that_came_back_to_life_does_not_expire(zone: Zone) -> None:
    done = make_trip(version=1, current_status=Status.CANCELLED)
    await zone.state.load_trip(zone.keys, done)
    await zone.state.load_trip(zone.keys, make_trip(version=2))
    assert await zone.redis.ttl(zone.keys.trip("z_1")) == -1


async def test_the_bond_moves_from_one_driver_to_the_next(zone: Zone) -> None:
    await zone.driver("d1", trip_id="z_1")
    await zone.driver("d2")
    trip = make_trip(version=3, current_status=Status.ACCEPTED, driver_id="d2")
    await zone.state.load_trip(zone.keys, trip, former_driver="d1")
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == ""
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_1"
    # The same driver on both sides keeps it; and one who has moved on keeps the new one.
    trip = make_trip(version=4, current_status=Status.ARRIVED, driver_id="d2")
    await zone.state.load_trip(zone.keys, trip, former_driver="d2")
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_1"
    await zone.driver("d2", trip_id="z_9")
    await zone.state.load_trip(zone.keys, make_trip(version=5), former_driver="d2")
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == "z_9"


async def test_a_trip_may_come_before_its_driver(zone: Zone) -> None:
    trip = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d1")
    await zone.state.load_trip(zone.keys, trip)
    assert await zone.state.load_driver(zone.keys, make_driver(), fix=Fix(50.1, 8.6, START_MS))
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_1"
    assert await geo(zone) == []


async def test_a_driver_is_loaded_and_never_taken_back(zone: Zone) -> None:
    load = zone.state.load_driver
    assert await load(zone.keys, make_driver(version=9))
    assert await load(zone.keys, make_driver(version=10, availability_status="unavailable"))
    before = await zone.dump()
    for version in (0, 9, 10):
        assert not await load(zone.keys, make_driver(version=version), fix=Fix(1.0, 2.0, START_MS))
    assert await zone.dump() == before


async def test_the_last_known_place_is_loaded_where_none_is_known(zone: Zone) -> None:
    await zone.state.load_driver(zone.keys, make_driver(), fix=Fix(50.1, 8.6, START_MS - 5))
    stored = await zone.hash(zone.keys.driver("d1"))
    assert (stored["lat"], stored["lng"], stored["fix_ms"]) == ("50.1", "8.6", str(START_MS - 5))
    assert await geo(zone) == ["d1"]
    newer = make_driver(version=1)
    await zone.state.load_driver(zone.keys, newer, fix=Fix(1.0, 2.0, START_MS + 5))
    assert (await zone.hash(zone.keys.driver("d1")))["lat"] == "50.1"


@pytest.mark.parametrize(
    ("change", "seen"),
    [({"is_online": False}, False), ({"availability_status": "unavailable"}, True),
     ({"zone": "elsewhere"}, False)],
)  # fmt: skip
async def test_who_left_the_market_leaves_the_geo_set(
    zone: Zone, change: dict[str, Any], seen: bool
) -> None:
    await zone.state.load_driver(zone.keys, make_driver(), fix=Fix(50.1, 8.6, START_MS))
    assert await zone.state.load_driver(zone.keys, make_driver(version=1, **change))
    assert await geo(zone) == []
    assert (await zone.redis.zscore(zone.keys.seen, "d1") is not None) == seen
    online = (await zone.hash(zone.keys.driver("d1")))["is_online"]
    assert online == ("1" if "availability_status" in change else "0")


async def test_who_is_loaded_out_of_the_market_does_not_enter_it(zone: Zone) -> None:
    await zone.state.load_driver(
        zone.keys, make_driver(availability_status="unavailable"), fix=Fix(50.1, 8.6, START_MS)
    )
    await zone.state.load_driver(
        zone.keys, make_driver("d2", is_online=False), fix=Fix(50.1, 8.6, START_MS)
    )
    assert await geo(zone) == []


async def test_another_vehicle_leaves_the_geo_set_that_redis_knew(zone: Zone) -> None:
    await zone.state.load_driver(zone.keys, make_driver(), fix=Fix(50.1, 8.6, START_MS))
    van = make_driver(version=1, vehicle_type="van")
    assert await zone.state.load_driver(zone.keys, van, former_vehicle="car")
    assert await geo(zone) == []


async def test_the_bond_is_put_right_though_the_hash_is_as_new(zone: Zone) -> None:
    """A settle has written the trip while the zone was loaded, and knew nothing of its driver."""
    trip = make_trip(version=2, current_status=Status.ARRIVED, driver_id="d1")
    await zone.state.load_trip(zone.keys, trip)
    await zone.redis.delete(zone.keys.driver("d1"))
    accepted = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d1")
    assert not await zone.state.load_trip(zone.keys, accepted)
    assert (await zone.hash(zone.keys.driver("d1")))["trip_id"] == "z_1"
    # And one who only believes to have it is free.
    await zone.driver("d2", trip_id="z_1")
    assert not await zone.state.load_trip(zone.keys, accepted, former_driver="d2")
    assert (await zone.hash(zone.keys.driver("d2")))["trip_id"] == ""


async def test_a_trip_that_is_taken_is_on_offer_to_nobody(zone: Zone) -> None:
    await zone.trip()
    await put_on_offer(zone, "d1", "d2")
    trip = make_trip(version=1, current_status=Status.ACCEPTED, driver_id="d9")
    await zone.state.load_trip(zone.keys, trip, offered=["d1", "d2"])
    names = (zone.keys.offers("z_1"), zone.keys.inbox("d1"), zone.keys.inbox("d2"))
    assert await zone.redis.exists(*names) == 0


async def test_the_hash_of_a_driver_who_is_loaded_offline_ends(zone: Zone) -> None:
    await zone.state.load_driver(zone.keys, make_driver(is_online=False))
    assert 0 < await zone.redis.ttl(zone.keys.driver("d1")) <= 3_600
    await zone.state.load_driver(zone.keys, make_driver(version=1))
    assert await zone.redis.ttl(zone.keys.driver("d1")) == -1


async def test_the_hash_of_a_driver_on_a_trip_does_not_end(zone: Zone) -> None:
    """They were loaded as free and offline before the trip was, or are found to have no trip any more."""
    name = zone.keys.driver("d1")
    await zone.state.load_driver(zone.keys, make_driver(is_online=False))
    trip = make_trip(version=3, current_status=Status.ONGOING, driver_id="d1")
    await zone.state.load_trip(zone.keys, trip)
    assert await zone.redis.ttl(name) == -1
    ended = make_trip(version=4, current_status=Status.COMPLETED, driver_id="d1")
    await zone.state.load_trip(zone.keys, ended, former_driver="d1")
    assert 0 < await zone.redis.ttl(name) <= 3_600
    # Who is online stays, on a trip or not.
    await zone.driver("d2", trip_id="z_1")
    await zone.state.load_trip(zone.keys, ended, former_driver="d2")
    assert await zone.redis.ttl(zone.keys.driver("d2")) == -1
