"""A wave is shown to drivers who may have the trip, and takes out of the geo set who should not be there."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.live.offers import WaveResult
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, Zone
from tests.lua.settling import geo, place


async def offer(zone: Zone, **columns: Any) -> WaveResult:
    trip = await zone.trip(**columns)
    near = await zone.offers.nearest(zone.keys, trip, radius_m=5_000, max_drivers=10)
    return await zone.offers.offer_trip(
        zone.keys, trip, "{}", near, round_number=0, size=5, answer_ms=15_000, again_ms=1_000,
        max_open_offers=3, fix_age_ms=FIX_AGE_MS, max_wait_ms=60_000, ask_again=False,
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
