"""Offers: which drivers are shown a trip, wave by wave, and what came of it."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
import structlog

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import OfferScripts, WaveCode, WaveResult
from dispatcher.live.state import StateScripts
from dispatcher.service.commands.actions import expire_trip
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.offer_log import OfferLog, OfferOutcome, OfferRow
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.offers")

#: Where nobody could be found, the next wave reaches further at once; the widest looks again after this.
_LOOK_FURTHER_MS: Final = 10
_LOOK_AGAIN_MS: Final = 1_000
#: Candidates looked at for each offer of a wave: many of the nearest are busy or have declined.
CANDIDATES_PER_OFFER: Final = 6
MORE_CANDIDATES: Final = 10


class Offers:
    """Runs waves. Any server may run the next wave of any trip; the scripts see to it that one does."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: OfferScripts,
        state: StateScripts,
        rehydration: Rehydration,
        coordinator: Coordinator,
        offer_log: OfferLog,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._state = state
        self._rehydration = rehydration
        self._coordinator = coordinator
        self._offer_log = offer_log
        self._fix_age_ms = fix_age_s * 1000

    async def run_due(self, zone_name: str) -> int | None:
        """Runs the waves that are due in a zone; returns ms until the next one is, or None.

        Raises StoreUnavailable, OutcomeUnknown. The failure of one wave does not hold up the others.
        """
        zone = self._zones.get(zone_name)
        assert zone is not None
        due = await self._scripts.claim_waves(keys_of(zone_name))
        # Together: a wave is three round trips, and in a row they held a zone to some 60 trips a second.
        ran = await asyncio.gather(
            *(self._run(zone, trip_id) for trip_id in due.trip_ids), return_exceptions=True
        )
        for trip_id, error in zip(due.trip_ids, ran, strict=True):
            if isinstance(error, StoreUnavailable | OutcomeUnknown):
                raise error
            if error is not None:
                log.error("wave failed", trip_id=trip_id, exc_info=error)
        if due.trip_ids:
            return 0
        return None if due.next_ms is None else max(0, due.next_ms - due.now_ms)

    async def _run(self, zone: Zone, trip_id: str) -> None:
        keys = keys_of(zone.name)
        hash_ = await self._state.read_hash(keys.trip(trip_id))
        if not hash_.get("id"):
            if await self._rehydration.reload_trip(keys, trip_id) is None:
                await self._scripts.forget_wave(keys, trip_id)
            return
        result = await self._offer(zone, Trip.from_hash(hash_), int(hash_.get("round") or 0))
        if result.code is WaveCode.EXHAUSTED:
            answer = await self._coordinator.execute(expire_trip(self._zones, trip_id))
            log.info("trip expired", trip_id=trip_id, waves=result.wave, status=answer.status)

    async def _offer(self, zone: Zone, trip: Trip, round_number: int) -> WaveResult:
        keys, last = keys_of(zone.name), len(zone.waves) - 1
        wave, is_widest = zone.waves[min(round_number, last)], round_number >= last
        candidates = await self._scripts.nearest(
            keys, trip, radius_m=wave.radius_m,
            max_drivers=wave.size * CANDIDATES_PER_OFFER + MORE_CANDIDATES,
        )  # fmt: skip
        result = await self._scripts.offer_trip(
            keys, trip, orjson.dumps(trip.to_json()).decode(), candidates,
            round_number=round_number, size=wave.size, answer_ms=int(wave.deadline_s * 1000),
            again_ms=_LOOK_AGAIN_MS if is_widest else _LOOK_FURTHER_MS,
            max_open_offers=zone.offers_per_driver, fix_age_ms=self._fix_age_ms,
            max_wait_ms=int(sum(w.deadline_s for w in zone.waves) * 1000), ask_again=is_widest,
        )  # fmt: skip
        self._offer_log.record(trip.id, result.expired, OfferOutcome.EXPIRED, result.now_ms)
        distances = dict(candidates)
        self._offer_log.add_offers(
            OfferRow(trip.id, driver, result.wave, distances[driver], result.now_ms, result.deadline_ms)
            for driver in result.offered
        )
        return result
