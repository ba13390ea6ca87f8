"""Creations: an id is taken once, and tells nothing of its trip."""

from __future__ import annotations

from dispatcher.live.claim_results import ClaimCode, Refused, Replayed
from dispatcher.live.idempotency import KeptRefusal
from tests.harness.lua_zone import START_MS, Zone, key, limit
from tests.lua.claim_kinds import claim_of, code_of


async def test_an_id_that_is_taken_tells_nothing_of_its_trip(zone: Zone) -> None:
    await zone.trip(version=3)
    attempt = zone.attempt(key=key())
    result = await claim_of(zone, "creation")(attempt)
    assert result == Refused(ClaimCode.TRIP_EXISTS, None, now_ms=START_MS)
    again = await claim_of(zone, "creation")(attempt)
    assert again == Replayed(None, KeptRefusal("trip_exists", None, None))
    assert await zone.redis.keys("*:claim*") == []


async def test_an_id_that_is_being_taken_is_waited_for(zone: Zone) -> None:
    claim = claim_of(zone, "creation")
    assert code_of(await claim(zone.attempt(key=key("first")))) == "claimed"
    before = await zone.dump()
    assert code_of(await claim(zone.attempt(key=key("second"), limits=[limit(5)]))) == "trip_busy"
    assert await zone.dump() == before
