"""A wave is shown to drivers who may have the trip, and takes out of the geo set who should not be there."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.live.offers import WaveResult
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone
from tests.lua.settling import geo, place


async def offer(zone: Zone, *, ask_again: bool = False, **columns: Any) -> WaveResult:
    trip = await zone.trip(**columns)
    round_number = int((await zone.hash(zone.keys.trip(trip.id))).get("round", 0))
    near = await zone.offers.nearest(zone.keys, trip, radius_m=5_000, max_drivers=10)
    return await zone.offers.offer_trip(
        zone.keys, trip, "{}", near, round_number=round_number, size=5, answer_ms=15_000, again_ms=1_000,
        max_open_offers=3, fix_age_ms=FIX_AGE_MS, max_wait_ms=60_000, ask_again=ask_again,
    )  # fmt: skip


@pytest.mark.parametrize(
    "columns",
    [{"vehicle_type": "van"}, {"is_online": False}, {"availability_status": "unavailable"},
     {"trip_id": "z_9"}],
)  # fmt: skip
async def test_who_is_left_in_the_geo_set_gets_no_offer_and_leaves_it(
    zone: Zone, columns: dict[str, Any]
) -> None:
    """A settle that should have taken them out was lost."""
    await zone.driver("d1", fix_ms=START_MS, **columns)
    await zone.driver("d2", fix_ms=START_MS)
    await place(zone, "d1", "d2")
    await zone.redis.zadd(zone.keys.present, {f"driver:{d}": START_MS + 9_000 for d in ("d1", "d2")})
    wave = await offer(zone)
    assert (wave.code, wave.offered) == ("offered", ["d2"])
    assert await geo(zone) == ["d2"]


async def test_who_is_away_for_a_moment_stays_in_the_geo_set(zone: Zone) -> None:
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    assert (await offer(zone)).code == "nobody"
    assert await geo(zone) == ["d1"]


async def test_a_clock_that_steps_back_leaves_no_trip_waiting(zone: Zone) -> None:
    """Its wave is due now, what was on offer is over, and its time begins anew."""
    await zone.driver("d1", fix_ms=START_MS)
    await place(zone, "d1")
    await zone.redis.zadd(zone.keys.present, {"driver:d1": START_MS + 9_000})
    await zone.redis.zadd(zone.keys.waves, {"z_1": START_MS})
    assert (await offer(zone)).offered == ["d1"]
    assert (await zone.offers.claim_waves(zone.keys)).trip_ids == []
    await zone.advance(-3_600_000)
    assert (await zone.offers.claim_waves(zone.keys)).trip_ids == ["z_1"]
    again = await offer(zone, ask_again=True)
    assert (again.offered, again.expired) == (["d1"], ["d1"])
    assert await zone.redis.zrange(zone.keys.inbox("d1"), 0, -1, withscores=True) == [
        ("z_1", zone.now_ms + 15_000)
    ]
    await zone.advance(60_000)
    assert (await offer(zone)).code == "exhausted"
