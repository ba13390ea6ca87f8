"""Offers: which drivers are shown a trip, wave by wave, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import structlog

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import Candidate, OfferScripts, WaveCode, WaveResult
from dispatcher.live.state import StateScripts
from dispatcher.matching.looks import longest_wait_ms, look
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import expire_trip
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.matched_rounds import MatchedRound, MatchedRounds, MatchedTrip
from dispatcher.service.offer_log import OfferLog, OfferOutcome, OfferRow
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.webhook import Webhook

log = structlog.get_logger("dispatcher.offers")

#: Candidates looked at for each offer of a wave: many of the nearest are busy or have declined.
CANDIDATES_PER_OFFER: Final = 6
MORE_CANDIDATES: Final = 10
#: An offer by hand is one more, however many are out.
_ANY_NUMBER: Final = 1_000_000
#: When the next wave of a trip is due that could not be offered by hand.
_AGAIN_MS: Final = 1_000


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
        matched_rounds: MatchedRounds,
        authorities: Authorities,
        webhook: Webhook,
        database: Database,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._state = state
        self._rehydration = rehydration
        self._coordinator = coordinator
        self._offer_log = offer_log
        self._rounds = matched_rounds
        self._authorities = authorities
        self._webhook = webhook
        self._database = database
        self._fix_age_ms = fix_age_s * 1000

    async def run_due(self, zone_name: str) -> int | None:
        """Runs the waves that are due in a zone; returns ms until the next one is, or None.

        Raises StoreUnavailable, OutcomeUnknown. The failure of one wave does not hold up the others.
        """
        zone = self._zones.get(zone_name)
        assert zone is not None
        if self._authorities.of(zone_name).is_degraded:
            return None  # dispatcher/service/ledger_offers.py makes them
        rounds = self._rounds
        due = await self._scripts.claim_waves(
            keys_of(zone_name), max_trips=rounds.max_trips(zone), again_ms=rounds.again_ms(zone)
        )
        going_on: Sequence[str] = due.trip_ids
        planned = MatchedRound()
        if rounds.applies(zone, due):
            planned = await rounds.begin(zone, due)
            going_on = planned.going_on
        waves = {trip_id: self._run(zone, trip_id) for trip_id in going_on} | {
            matched.trip.id: self._run_matched(zone, matched, planned.fence)
            for matched in planned.matched
        }
        # Together: a wave is three round trips, and in a row they held a zone to some 60 trips a second.
        ran = await asyncio.gather(*waves.values(), return_exceptions=True)
        for trip_id, error in zip(waves, ran, strict=True):
            if isinstance(error, StoreUnavailable | OutcomeUnknown):
                raise error
            if error is not None:
                log.error("wave failed", trip_id=trip_id, exc_info=error)
        if due.trip_ids:
            return 0
        return None if due.next_ms is None else max(0, due.next_ms - due.now_ms)

    async def _run(self, zone: Zone, trip_id: str) -> None:
        keys = keys_of(zone.name)
        waiting = await self._state.read_waiting(keys, trip_id)
        if waiting is None:
            if await self._rehydration.reload_trip(keys, trip_id) is None:
                await self._scripts.forget_wave(keys, trip_id)
            return
        trip, round_number = waiting
        step = look(zone.waves, round_number)
        candidates = await self._scripts.nearest(
            keys, trip, radius_m=step.wave.radius_m,
            max_drivers=step.wave.size * CANDIDATES_PER_OFFER + MORE_CANDIDATES,
        )  # fmt: skip
        result = await self._offer(zone, trip, round_number, candidates, again_ms=step.again_ms)
        if result.code is WaveCode.NOBODY and step.is_widest:
            await self._rounds.found_nobody(zone, trip_id, result.now_ms)

    async def _run_matched(self, zone: Zone, matched: MatchedTrip, fence: int) -> None:
        """Offers a trip to the driver whom a round has matched; one without waits for the next round."""
        await self._offer(
            zone, matched.trip, matched.round_number,
            [Candidate(ranked.driver_id, ranked.distance_m) for ranked in matched.order],
            again_ms=zone.matching.every_ms, scores=matched.scores(),
            fence=fence, head_start_ms=round(zone.matching.head_start_s * 1000),
        )  # fmt: skip

    async def offer_by_hand(
        self, zone: Zone, trip_id: str, candidate: Candidate, operator: str
    ) -> WaveResult | None:
        """An operator's wave of one: others keep their offers, and the next wave follows when this one
        has ended. None where there is no such trip. Raises StoreUnavailable, also where the offer is
        out and its row could not be saved, which is tried again."""
        keys = keys_of(zone.name)
        waiting = await self._state.read_waiting(keys, trip_id)
        if waiting is None:
            await self._rehydration.reload_trip(keys, trip_id)
            waiting = await self._state.read_waiting(keys, trip_id)
        if waiting is None:
            return None
        result = await self._offer(
            zone, *waiting, [candidate],
            again_ms=_AGAIN_MS, operator=operator, size=_ANY_NUMBER, ask_again=True,
        )  # fmt: skip
        await self._offer_log.save_offers(self._database)
        return result

    async def _offer(
        self,
        zone: Zone,
        trip: Trip,
        round_number: int,
        candidates: Sequence[Candidate],
        *,
        again_ms: int,
        scores: Mapping[str, str] | None = None,
        operator: str | None = None,
        size: int | None = None,
        ask_again: bool | None = None,
        **of_round: Any,
    ) -> WaveResult:
        step = look(zone.waves, round_number)
        result = await self._scripts.offer_trip(
            keys_of(zone.name), trip, orjson.dumps(trip.to_json()).decode(), candidates,
            round_number=round_number, size=size or step.wave.size,
            answer_ms=int(step.wave.deadline_s * 1000), again_ms=again_ms,
            max_open_offers=zone.offers_per_driver, fix_age_ms=self._fix_age_ms,
            max_wait_ms=longest_wait_ms(zone.waves),
            ask_again=step.is_widest if ask_again is None else ask_again, **of_round,
        )  # fmt: skip
        self._offer_log.record(trip.id, result.expired, OfferOutcome.EXPIRED, result.now_ms)
        distances = dict(candidates)
        self._offer_log.add_offers(
            OfferRow(
                trip.id, driver, result.wave, distances[driver], result.now_ms, result.deadline_ms,
                (scores or {}).get(driver), operator,
            )
            for driver in result.offered
        )  # fmt: skip
        await self._webhook.offered(trip, result, distances)
        if result.code is WaveCode.EXHAUSTED:
            answer = await self._coordinator.execute(expire_trip(self._zones, trip.id))
            log.info("trip expired", trip_id=trip.id, waves=result.wave, status=answer.status)
        return result
