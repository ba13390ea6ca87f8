"""Transitions of a trip that exists: who may take which step from which state."""

from __future__ import annotations

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.trips import Status
from dispatcher.live.claim_results import ClaimCode, Refused, TransitionClaimed
from tests.harness.lua_zone import START_MS, Zone, key, limit
from tests.lua.claim_kinds import claim_of, code_of


async def test_a_transition_learns_what_its_commit_needs(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.zadd(zone.keys.offers("z_1"), {"d7": START_MS + 1})
    result = await claim_of(zone, "transition")(zone.attempt())
    assert isinstance(result, TransitionClaimed)
    assert (result.trip, result.offered) == (trip, ["d7"])


@pytest.mark.parametrize(
    ("role", "user_id", "code"),
    [
        ("driver", "d1", "claimed"), ("driver", "d2", "trip_not_found"),
        ("customer", "c1", "claimed"), ("customer", "d1", "trip_not_found"),
        ("admin", "anyone", "claimed"), ("system", "dispatcher", "claimed"),
    ],
)  # fmt: skip
async def test_only_its_own_people_see_a_trip(zone: Zone, role: str, user_id: str, code: str) -> None:
    await zone.trip(current_status=Status.ACCEPTED, driver_id="d1", version=1)
    claim = claim_of(zone, "transition", actor=Actor(user_id, Role(role)))
    result = await claim(zone.attempt(key=key()))
    assert code_of(result) == code
    if code == "trip_not_found":
        assert result == Refused(ClaimCode.TRIP_NOT_FOUND, None, now_ms=START_MS), (
            "nothing is given away"
        )
        assert await zone.redis.keys("*:idem:*") == []


async def test_a_trip_without_a_driver_is_nobodys(zone: Zone) -> None:
    await zone.trip()
    claim = claim_of(zone, "transition", actor=Actor("d1", Role.DRIVER))
    assert code_of(await claim(zone.attempt())) == "trip_not_found"


async def test_a_state_that_does_not_allow_it(zone: Zone) -> None:
    await zone.trip(current_status=Status.ONGOING, driver_id="d1", version=3)
    # A state's name is no part of another's.
    claim = claim_of(zone, "transition", sources=("accepted", "arrived"), version=1)
    result = await claim(zone.attempt(key=key()))
    assert result == Refused(ClaimCode.INVALID_TRIP_STATUS, None, 3, Status.ONGOING, START_MS)
    assert code_of(await claim(zone.attempt(key=key()))) == "replay"


async def test_a_busy_trip_is_waited_for_free_of_charge(zone: Zone) -> None:
    await zone.trip()
    claim = claim_of(zone, "transition")
    holder = zone.attempt()
    assert code_of(await claim(holder)) == "claimed"
    before = await zone.dump()
    attempt = zone.attempt(key=key(), limits=[limit(5)])
    assert code_of(await claim(attempt)) == "trip_busy"
    assert await zone.dump() == before
    await zone.claims.release_claim(zone.keys, holder)
    assert code_of(await claim(attempt)) == "claimed"
