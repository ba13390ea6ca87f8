"""Offers: which drivers are shown a trip, wave by wave, and what came of it."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts, WaveResult, flat_to_dict
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.rehydration import Picture
from dispatcher.service.trips import Trips

log = structlog.get_logger("dispatcher.offers")

#: Where nobody could be found, the next wave reaches further at once; the widest looks again after this.
_LOOK_FURTHER_MS: Final = 10
_LOOK_AGAIN_MS: Final = 1_000
#: Candidates looked at for each place in a wave: many of the nearest are busy or have declined.
_CANDIDATES: Final = 6


class Offers:
    """Runs waves. Any server may run the next wave of any trip; the scripts see to it that one does."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: Scripts,
        picture: Picture,
        trips: Trips,
        rows: OfferLog,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._picture = picture
        self._trips = trips
        self._rows = rows
        self._fix_age_ms = fix_age_s * 1000

    async def run_due(self, zone_name: str) -> int | None:
        """Runs the waves that are due in a zone; returns ms until the next one is, or None."""
        zone = self._zones.get(zone_name)
        assert zone is not None
        keys = keys_of(zone_name)
        now_ms, next_ms, due = await self._scripts.claim_waves(keys)
        # Together: a wave is three round trips, and in a row they held a zone to some 60 trips a second.
        ran = await asyncio.gather(*(self._run(zone, t) for t in due), return_exceptions=True)
        for trip_id, error in zip(due, ran, strict=True):
            if isinstance(error, StoreUnavailable):
                raise error
            if error is not None:
                log.error("wave failed", trip_id=trip_id, exc_info=error)
        if due:
            return 0
        return max(0, next_ms - now_ms) if next_ms else None

    async def _run(self, zone: Zone, trip_id: str) -> None:
        keys = keys_of(zone.name)
        hash_ = flat_to_dict(await self._scripts.read_trip(keys, trip_id))
        if not hash_.get("id"):
            if await self._picture.load_trip(keys, trip_id) is None:
                await self._scripts.forget_wave(keys, trip_id)
            return
        trip = Trip.from_hash(hash_)
        reach = int(hash_.get("reach") or 0)
        last = len(zone.waves) - 1
        wave = zone.waves[min(reach, last)]
        candidates = await self._scripts.nearest(
            keys, trip, radius_m=wave.radius_m, most=wave.size * _CANDIDATES + 10
        )
        result = await self._scripts.offer_trip(
            keys, trip, orjson.dumps(trip.to_json()).decode(), candidates,
            reach=reach, size=wave.size, answer_ms=int(wave.deadline_s * 1000),
            again_ms=_LOOK_AGAIN_MS if reach >= last else _LOOK_FURTHER_MS,
            share=zone.offers_per_driver, fix_age_ms=self._fix_age_ms,
            patience_ms=int(sum(w.deadline_s for w in zone.waves) * 1000), ask_again=reach >= last,
        )  # fmt: skip
        self._record(trip_id, result, dict(candidates))
        if result.code == "exhausted":
            answer = await self._trips.expire(trip_id)
            log.info("trip expired", trip_id=trip_id, waves=result.wave, status=answer.status)

    def _record(self, trip_id: str, result: WaveResult, distances: dict[str, float]) -> None:
        self._rows.outcome(trip_id, result.expired, "expired", result.now_ms)
        self._rows.offers += [
            (trip_id, driver, result.wave, distances[driver], result.now_ms, result.deadline_ms)
            for driver in result.offered
        ]
