"""Offers: which drivers are shown a trip, wave by wave, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import orjson
import structlog

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.matching import TripInWaiting
from dispatcher.live.offers import Candidate, OfferScripts, WaveCode, WaveResult
from dispatcher.matching.looks import longest_wait_ms, look, widest_reach_m
from dispatcher.observe.call_ids import TRIP_ID
from dispatcher.observe.series import OFFERS, TIME_TO_FIRST_OFFER, WAVES
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import expire_trip
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.matched_rounds import MatchedRounds
from dispatcher.service.offer_log import OfferLog, OfferOutcome, OfferRow
from dispatcher.service.queues import InLine, Queues
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.round_trips import MatchedTrip
from dispatcher.service.webhook import Webhook

log = structlog.get_logger("dispatcher.offers")

#: Candidates looked at for each offer of a wave: many of the nearest are busy or have declined.
CANDIDATES_PER_OFFER: Final = 6
MORE_CANDIDATES: Final = 10
#: An offer by hand is one more, however many are out.
_ANY_NUMBER: Final = 1_000_000
#: When the next wave of a trip is due that could not be offered by hand.
_AGAIN_MS: Final = 1_000
#: Trips whose first wave goes on after a head start, as far as they are remembered.
_MAX_HEAD_STARTS: Final = 10_000


T = TypeVar("T")


class ZoneLost(Exception):
    """Another server does the rounds of this zone by now. Nothing was done."""


class Offers:
    """Runs waves. One server at a time runs those of a zone; the scripts see to it that a wave is run
    once, whoever believes to be that server."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: OfferScripts,
        rehydration: Rehydration,
        coordinator: Coordinator,
        offer_log: OfferLog,
        matched_rounds: MatchedRounds,
        queues: Queues,
        authorities: Authorities,
        webhook: Webhook,
        database: Database,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._rehydration = rehydration
        self._coordinator = coordinator
        self._offer_log = offer_log
        self._rounds = matched_rounds
        self._queues = queues
        self._authorities = authorities
        self._webhook = webhook
        self._database = database
        self._fix_age_ms = fix_age_s * 1000
        self._first_offered: dict[str, None] = {}
        #: Of trips with a head start: the scores of those whom the wave may go on to.
        self._planned: dict[str, dict[str, str]] = {}

    async def run_due(
        self,
        zone_name: str,
        zone_fence: str = "",
        *,
        hand_over: Callable[[Mapping[str, TripInWaiting]], None] | None = None,
    ) -> int | None:
        """Runs the waves that are due in a zone; returns ms until the next one is, or None.

        `zone_fence` is that by which this server holds the zone; an empty one needs none. `hand_over` is
        given the trips that are for a round of matching; without one it is run here. Raises ZoneLost
        where the zone is another server's, StoreUnavailable, OutcomeUnknown. The failure of one wave
        does not hold up the others.
        """
        zone = self._zones.get(zone_name)
        assert zone is not None
        if self._authorities.of(zone_name).is_degraded:
            return None  # dispatcher/service/ledger_offers.py makes them
        rounds = self._rounds
        due = await self._scripts.claim_waves(
            keys_of(zone_name), max_trips=rounds.max_trips(zone), again_ms=rounds.again_ms(zone),
            zone_fence=zone_fence,
        )  # fmt: skip
        if not due.is_held:
            rounds.forget(zone)
            raise ZoneLost(zone_name)
        if not rounds.applies(zone, due):
            await self._run_waves(zone, due.trip_ids, zone_fence)
        else:
            in_line = await self._queues.trips_with_a_line(zone, due.trip_ids)
            # First, so that the round counts what the front of a queue is offered.
            await self._run_waves(zone, in_line, zone_fence)
            others = [trip_id for trip_id in due.trip_ids if trip_id not in in_line]
            looking = await rounds.for_a_round(zone, others, due.scarce)
            # Before the round is planned, which they do not wait for.
            await self._run_waves(zone, [id_ for id_ in others if id_ not in looking], zone_fence)
            if hand_over is None:
                await self.run_round(zone_name, looking, zone_fence)
            elif looking:
                hand_over(looking)
        if due.trip_ids:
            await rounds.look_closer(zone, due.now_ms)
            return 0
        return None if due.next_ms is None else max(0, due.next_ms - due.now_ms)

    async def run_round(
        self, zone_name: str, looking: Mapping[str, TripInWaiting], zone_fence: str = ""
    ) -> None:
        """Plans a round of matching of these trips, if it is time, and makes its offers; else they are
        due with the next one. Raises StoreUnavailable, OutcomeUnknown."""
        zone = self._zones.get(zone_name)
        assert zone is not None
        if self._authorities.of(zone_name).is_degraded:
            return
        planned = await self._rounds.begin(zone, looking, zone_fence)
        await self._run_waves(zone, planned.failed, zone_fence)
        await self._run_all(
            {
                matched.trip.id: self._run_matched(zone, matched, planned.fence, zone_fence)
                for matched in planned.matched
            }
        )

    async def _run_waves(self, zone: Zone, trip_ids: Iterable[str], zone_fence: str) -> None:
        await self._run_all({trip_id: self._run(zone, trip_id, zone_fence) for trip_id in trip_ids})

    async def _run_all(self, waves: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        # Together: a wave is three round trips, and in a row they held a zone to some 60 trips a second.
        ran = await asyncio.gather(*waves.values(), return_exceptions=True)
        for trip_id, error in zip(waves, ran, strict=True):
            if isinstance(error, StoreUnavailable | OutcomeUnknown):
                raise error
            if error is not None:
                log.error("wave failed", trip_id=trip_id, exc_info=error)

    async def _run(self, zone: Zone, trip_id: str, zone_fence: str) -> None:
        TRIP_ID.set(trip_id)
        keys = keys_of(zone.name)
        waiting = await self._scripts.read_waiting(keys, trip_id)
        if waiting is None:
            if await self._rehydration.reload_trip(keys, trip_id) is None:
                await self._scripts.forget_wave(keys, trip_id)
            return
        trip, round_number, goes_on = waiting
        step = look(zone.waves, round_number)
        # The matched driver may be further away than the first wave reaches: so may the rest of it.
        reach_m = widest_reach_m(zone.waves) if goes_on else step.wave.radius_m
        candidates = await self._scripts.nearest(
            keys, trip, radius_m=reach_m,
            max_drivers=step.wave.size * CANDIDATES_PER_OFFER + MORE_CANDIDATES,
        )  # fmt: skip
        line = await self._queues.in_line(zone, trip) if zone.queues else InLine()
        planned = self._planned.pop(trip_id, {}) if goes_on else {}
        result = await self._offer(
            zone, trip, round_number, line.before(candidates), zone_fence=zone_fence,
            again_ms=step.again_ms, scores=planned | line.scores(), queue=line.queue,
            queued=len(line.candidates),
            head_start_ms=round(zone.matching.head_start_s * 1000) if line.candidates else 0,
        )  # fmt: skip
        if result.code is WaveCode.NOBODY and step.is_widest:
            await self._rounds.found_nobody(zone, trip, result.now_ms)

    async def _run_matched(
        self, zone: Zone, matched: MatchedTrip, fence: int, zone_fence: str = ""
    ) -> None:
        """Offers a trip to the driver whom a round has matched; one without waits for the next round."""
        TRIP_ID.set(matched.trip.id)
        scores = matched.scores()
        result = await self._offer(
            zone, matched.trip, matched.round_number,
            [Candidate(ranked.driver_id, ranked.distance_m) for ranked in matched.order],
            again_ms=zone.matching.every_ms, scores=scores, fence=fence, zone_fence=zone_fence,
            head_start_ms=round(zone.matching.head_start_s * 1000) if matched.is_first_wave else 0,
        )  # fmt: skip
        if matched.is_first_wave and result.offered:
            _remember(self._planned, matched.trip.id, scores)

    async def offer_by_hand(
        self, zone: Zone, trip_id: str, candidate: Candidate, operator: str
    ) -> WaveResult | None:
        """An operator's wave of one: others keep their offers, and the next wave follows when this one
        has ended. None where there is no such trip. Raises StoreUnavailable, also where the offer is
        out and its row could not be saved, which is tried again."""
        keys = keys_of(zone.name)
        waiting = await self._scripts.read_waiting(keys, trip_id)
        if waiting is None:
            await self._rehydration.reload_trip(keys, trip_id)
            waiting = await self._scripts.read_waiting(keys, trip_id)
        if waiting is None:
            return None
        result = await self._offer(
            zone, waiting.trip, waiting.round_number, [candidate],
            again_ms=_AGAIN_MS, scores={}, operator=operator, size=_ANY_NUMBER, ask_again=True,
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
        scores: Mapping[str, str],
        operator: str | None = None,
        size: int | None = None,
        ask_again: bool | None = None,
        **of_order: Any,
    ) -> WaveResult:
        step = look(zone.waves, round_number)
        result = await self._scripts.offer_trip(
            keys_of(zone.name), trip, orjson.dumps(trip.to_json()).decode(), candidates,
            round_number=round_number, size=size or step.wave.size,
            answer_ms=int(step.wave.deadline_s * 1000), again_ms=again_ms,
            max_open_offers=zone.offers_per_driver, fix_age_ms=self._fix_age_ms,
            max_wait_ms=longest_wait_ms(zone.waves),
            ask_again=step.is_widest if ask_again is None else ask_again,
            reach_m=widest_reach_m(zone.waves) if "fence" in of_order else None, **of_order,
        )  # fmt: skip
        if result.shared:
            self._rounds.shares_drivers(zone, trip)
        self._offer_log.record(trip.id, result.expired, OfferOutcome.EXPIRED, result.now_ms)
        distances = dict(candidates)
        self._offer_log.add_offers(
            OfferRow(
                trip.id, driver, result.wave, distances[driver], result.now_ms, result.deadline_ms,
                scores.get(driver), operator,
            )
            for driver in result.offered
        )  # fmt: skip
        self._count(zone, trip, result, has_head_start=bool(of_order.get("head_start_ms")))
        await self._webhook.offered(trip, result, distances)
        if result.code is WaveCode.EXHAUSTED:
            answer = await self._coordinator.execute(expire_trip(self._zones, trip.id))
            log.info("trip expired", trip_id=trip.id, waves=result.wave, status=answer.status)
        return result

    def _count(self, zone: Zone, trip: Trip, result: WaveResult, *, has_head_start: bool) -> None:
        WAVES.add(zone.name, result.code)
        OFFERS.add(zone.name, number=len(result.offered))
        if not result.offered or result.wave != 1:
            return
        if trip.id in self._first_offered:  # the matched driver was asked before
            del self._first_offered[trip.id]
            return
        TIME_TO_FIRST_OFFER.of(zone.name).observe((result.now_ms - trip.created_at) / 1000)
        if has_head_start:
            _remember(self._first_offered, trip.id, None)


def _remember(known: dict[str, T], trip_id: str, what: T) -> None:
    if len(known) >= _MAX_HEAD_STARTS:
        del known[next(iter(known))]
    known[trip_id] = what
