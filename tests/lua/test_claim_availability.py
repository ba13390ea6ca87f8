"""Changes of availability, and the trip that goes with a driver who goes offline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dispatcher.core.trips import Status
from dispatcher.live.claim_results import AvailabilityClaimed, Refused, Unresolved
from dispatcher.live.claims import Resolved
from tests.harness.lua_zone import LEASE_MS, Zone, key, limit
from tests.lua.claim_kinds import claim_of, code_of


async def test_going_offline_claims_the_trip_to_release(zone: Zone) -> None:
    for status, released in (("accepted", True), ("arrived", True), ("ongoing", False)):
        await zone.redis.delete(zone.keys.driver_claim("d1"), zone.keys.trip_claim("z_1"))
        trip = await zone.trip(current_status=Status(status), driver_id="d1", version=2)
        driver = await zone.driver(trip_id="z_1")
        attempt = zone.attempt()
        result = await claim_of(zone, "availability", goes_offline=True)(attempt)
        assert isinstance(result, AvailabilityClaimed)
        assert result.driver == replace(driver, trip_id="z_1")
        assert result.released == (trip if released else None)
        assert await zone.redis.get(zone.keys.driver_claim("d1")) == attempt.token
        trip_claim = await zone.redis.get(zone.keys.trip_claim("z_1"))
        assert trip_claim == (attempt.token if released else None)


async def test_becoming_unavailable_keeps_the_trip(zone: Zone) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver(trip_id="z_1")
    result = await claim_of(zone, "availability")(zone.attempt())
    assert isinstance(result, AvailabilityClaimed)
    assert result.released is None


async def test_a_driver_whose_trip_is_another_by_now(zone: Zone) -> None:
    await zone.driver(trip_id="z_5")
    before = await zone.dump()
    for assumed in ("", "z_1"):
        attempt = zone.attempt(assumed, key=key(), limits=[limit(5)])
        result = await claim_of(zone, "availability")(attempt)
        assert isinstance(result, Unresolved)
        assert (result.code, result.trip_id) == ("driver_moved", "z_5")
    assert await zone.dump() == before
    attempt = zone.attempt("z_5", key=key(), limits=[limit(5)])
    assert code_of(await claim_of(zone, "availability")(attempt)) == "trip_unknown"
    assert await zone.dump() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"changes_zone": True}, "driver_has_active_trip"),
        ({"vehicle_type": "van"}, "driver_has_active_trip"),
        ({"vehicle_type": "van", "goes_offline": True}, "driver_has_active_trip"),
        ({"vehicle_type": "car"}, "claimed"),
    ],
)
async def test_zone_and_vehicle_stay_during_a_trip(
    zone: Zone, change: dict[str, Any], code: str
) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=2)
    await zone.driver(trip_id="z_1")
    claim = claim_of(zone, "availability", **change)
    asked = zone.attempt(key=key(), limits=[limit(5)], resolved=[Resolved.KEY])
    result = await claim(asked)
    assert code_of(result) == code
    if code != "claimed":
        assert isinstance(result, Refused)
        assert (result.version, result.status) == (2, Status.ACCEPTED)
        assert await zone.redis.keys("*:claim*") == []
        assert code_of(await claim(zone.attempt(key=key()))) == "replay"


async def test_nothing_is_claimed_of_a_driver_who_works_elsewhere(zone: Zone) -> None:
    await zone.driver(zone="south")
    before = await zone.dump()
    claim = claim_of(zone, "availability")
    assert code_of(await claim(zone.attempt("", key=key(), limits=[limit(5)]))) == "driver_elsewhere"
    assert await zone.dump() == before
    assert (
        code_of(await claim_of(zone, "availability", from_zone="south")(zone.attempt(""))) == "claimed"
    )


async def test_postgres_is_asked_for_the_key_before_a_trip_is_in_the_way(zone: Zone) -> None:
    """The driver may have moved since the key was used, and taken the trip here."""
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=2)
    await zone.driver(trip_id="z_1")
    before = await zone.dump()
    claim = claim_of(zone, "availability", changes_zone=True)
    assert code_of(await claim(zone.attempt(key=key(), limits=[limit(5)]))) == "key_unresolved"
    assert await zone.dump() == before
    assert code_of(await claim(zone.attempt())) == "driver_has_active_trip"


@pytest.mark.parametrize("held", ["trip", "driver"])
async def test_a_claim_of_either_is_waited_for(zone: Zone, held: str) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    await zone.driver(trip_id="z_1")
    name = zone.keys.trip_claim("z_1") if held == "trip" else zone.keys.driver_claim("d1")
    await zone.redis.set(name, "other.1", px=LEASE_MS)
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert code_of(await claim_of(zone, "availability", goes_offline=True)(attempt)) == "trip_busy"
    assert await zone.dump() == before


async def test_an_accept_and_going_offline_exclude_each_other(zone: Zone) -> None:
    await zone.trip()
    await zone.driver()
    accept, offline = zone.attempt(), zone.attempt("")
    assert code_of(await zone.accept(accept)) == "claimed"
    claim = claim_of(zone, "availability", goes_offline=True)
    assert code_of(await claim(offline)) == "trip_busy"
    await zone.claims.release_claim(zone.keys, accept)
    assert code_of(await claim(offline)) == "claimed"
    assert code_of(await zone.accept(zone.attempt())) == "driver_not_available"


async def test_a_driver_who_came_back_is_not_claimed_as_absent(zone: Zone) -> None:
    await zone.driver("d1")
    await zone.redis.zadd(zone.keys.present, {"driver:d1": zone.now_ms + 1})
    before = await zone.dump()
    absent = claim_of(zone, "availability", goes_offline=True, absentee="driver:d1")
    assert code_of(await absent(zone.attempt(""))) == "came_back"
    assert await zone.dump() == before
    await zone.advance(1)
    assert code_of(await absent(zone.attempt(""))) == "claimed"
