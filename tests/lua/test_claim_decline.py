"""Declines: a pending trip is declined by as many as like."""

from __future__ import annotations

from dispatcher.live.claim_results import DeclineClaimed
from tests.harness.lua_zone import Zone, key
from tests.lua.claim_kinds import claim_of, code_of


async def test_declines_hinder_nobody(zone: Zone) -> None:
    trip = await zone.trip()
    await zone.redis.set(zone.keys.trip_claim("z_1"), "other.1")
    first = await claim_of(zone, "decline")(zone.attempt(key=key()))
    assert isinstance(first, DeclineClaimed)
    assert first.trip == trip
    second = zone.attempt(driver_id="d2", key=key(user="d2"))
    assert code_of(await claim_of(zone, "decline")(second)) == "claimed"
    assert await zone.redis.get(zone.keys.trip_claim("z_1")) == "other.1"
