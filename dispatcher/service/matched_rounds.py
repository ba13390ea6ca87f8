"""Rounds of matching: all trips of a zone that look for a driver are decided on together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.matching import MatchScripts, TripInWaiting
from dispatcher.live.offers import MAX_TRIPS, WAVE_AGAIN_MS, DueWaves
from dispatcher.matching.circles import Circle
from dispatcher.matching.looks import longest_wait_ms, widest_reach_m
from dispatcher.matching.model import NearbyDriver, Place, RoundPlan, WaitingTrip, Ways
from dispatcher.matching.scarcity import Scarcity
from dispatcher.matching.solver import load_solver
from dispatcher.observe.metrics import Metrics
from dispatcher.service.drivers_around import drivers_around
from dispatcher.service.round_trips import (
    MatchedTrip,
    is_first_wave,
    looks_for_a_driver,
    round_number,
    waiting_trip,
)
from dispatcher.service.shared_drivers import SharedDrivers
from dispatcher.service.well_served import WellServed

log = structlog.get_logger("dispatcher.matching")

#: Trips of a round at most: more than a zone has waiting for drivers who are there at all.
_MOST_TRIPS: Final = 2_000
#: The nearest drivers that a round looks at for each trip, beside one for each trip of the round: many
#: of them are busy or have declined.
_NEAREST: Final = 100


class Routing(Protocol):
    """A routing engine."""

    #: How many questions it did not answer, or not in time.
    fallbacks: int

    async def ways(
        self,
        url: str,
        pairs: Sequence[tuple[WaitingTrip, Sequence[NearbyDriver]]],
        *,
        deadline_s: float,
    ) -> Ways:
        """Seconds from driver to pickup by (trip, driver), as far as they are known in time."""


@dataclass(frozen=True, slots=True)
class MatchedRound:
    """A round of this `fence`, with its trips: those whose order is empty have no driver in it.

    `failed` are its trips where it could not be planned: they are to run their wave as ever.
    """

    fence: int = 0
    matched: Sequence[MatchedTrip] = ()
    failed: Sequence[str] = ()


class MatchedRounds:
    """Plans the rounds of all zones of one server. One server at a time runs a zone's round."""

    def __init__(self, zones: Zones, scripts: MatchScripts, routing: Routing, *, fix_age_s: int) -> None:
        self._scripts = scripts
        self.routing = routing
        self._fix_age_ms = fix_age_s * 1000
        #: By zone and vehicle type.
        self._scarcity: dict[str, dict[str, Scarcity]] = {
            name: {}
            for name in zones.names()
            if (zone := zones.get(name)) is not None and zone.matching.dispatch != "nearest"
        }
        self._well_served = WellServed(scripts)
        self._shared = SharedDrivers(self._well_served)
        #: By zone, the trips whom the last round found no driver.
        self._in_want: dict[str, frozenset[str]] = {}
        self.rounds = 0
        self.planning_s = 0.0
        self.failures = 0
        if self._scarcity and not load_solver():
            for name in self._scarcity:
                log.warning(
                    "matching is not installed: the zone asks the nearest drivers first",
                    zone=name, install="redis-trip-dispatcher[matching]",
                )  # fmt: skip
            self._scarcity = {}

    def tell(self, metrics: Metrics) -> None:
        """What metrics say of it."""
        counter = metrics.counter
        counter("dispatcher_match_rounds", "Rounds of matching.", lambda: self.rounds)
        counter("dispatcher_match_planning_seconds", "Time planning them took.", lambda: self.planning_s)
        counter(
            "dispatcher_match_failures", "Rounds that failed: the nearest were asked.",
            lambda: self.failures,
        )  # fmt: skip
        counter(
            "dispatcher_routing_fallbacks", "Routing tables that came late or were nonsense.",
            lambda: self.routing.fallbacks,
        )  # fmt: skip

    def again_ms(self, zone: Zone) -> int:
        """After what time trips that this server claimed are due again, should it fail."""
        return min(WAVE_AGAIN_MS, zone.matching.every_ms) if self._matches(zone) else WAVE_AGAIN_MS

    def max_trips(self, zone: Zone) -> int:
        """How many trips this server claims at once: a round is about all that wait."""
        return _MOST_TRIPS if self._matches(zone) else MAX_TRIPS

    def applies(self, zone: Zone, due: DueWaves) -> bool:
        """Whether what is due in the zone goes through a round."""
        if not due.trip_ids or not self._matches(zone):
            return False
        if zone.matching.dispatch == "auto" and not due.scarce:
            self.forget(zone)
            return False
        return True

    def forget(self, zone: Zone) -> None:
        """Nothing is scarce in the zone, or it is another server's."""
        self._in_want.pop(zone.name, None)
        self._well_served.forget(zone.name)

    async def found_nobody(self, zone: Zone, trip: Trip, now_ms: int) -> None:
        """A trip's widest look found no driver: if that is not the only one of its vehicle type, rounds
        begin."""
        if zone.matching.dispatch == "auto" and self._matches(zone):
            until_ms = self._supply(zone, trip.vehicle_type).found_nobody(trip.id, now_ms)
            await self._keep_scarce(zone, trip.vehicle_type, until_ms)

    def shares_drivers(self, zone: Zone, trip: Trip) -> None:
        """Drivers who were offered the trip hold offers of others: it may be one of too many."""
        if zone.matching.dispatch == "auto" and self._matches(zone):
            self._shared.note(zone, trip)

    async def look_closer(self, zone: Zone, now_ms: int) -> None:
        """Rounds begin where a trip that shares its drivers has no more of them than there are such
        trips. Raises StoreUnavailable."""
        for vehicle_type in await self._shared.short_types(zone, now_ms):
            until_ms = self._supply(zone, vehicle_type).saw_shortage(now_ms)
            await self._keep_scarce(zone, vehicle_type, until_ms)

    async def for_a_round(
        self, zone: Zone, trip_ids: Sequence[str], scarce: Collection[str]
    ) -> dict[str, TripInWaiting]:
        """Of the trips that are due, those that take part in a round. In `auto` these are of the vehicle
        types that are `scarce`.

        The others are to run their wave as ever: their head start is over, or there are drivers enough
        around. Raises StoreUnavailable."""
        known = await self._scripts.waiting(
            keys_of(zone.name), trip_ids, max_wait_ms=longest_wait_ms(zone.waves)
        )
        looking = {
            trip_id: trip
            for trip_id, trip in zip(trip_ids, known, strict=True)
            if looks_for_a_driver(trip_id, trip)
        }
        if zone.matching.dispatch == "auto":
            # Who is in want since the last round takes part in the next one, and is not looked at twice.
            in_want = self._in_want.get(zone.name, frozenset())
            looking = {
                trip_id: trip
                for trip_id, trip in looking.items()
                if trip.hash_["vehicle_type"] in scarce
            }
            others = {trip_id: trip for trip_id, trip in looking.items() if trip_id not in in_want}
            for trip_id in await self._well_served.of(zone, others):
                del looking[trip_id]
        return looking

    async def begin(
        self, zone: Zone, looking: Mapping[str, TripInWaiting], zone_fence: str = ""
    ) -> MatchedRound:
        """Plans a round of these trips, if it is time; else they wait for the next one, as those do of
        which nothing is said. Raises StoreUnavailable."""
        if not looking:
            return MatchedRound()
        start = await self._scripts.begin_round(
            keys_of(zone.name), list(looking), every_ms=zone.matching.every_ms, zone_fence=zone_fence
        )
        if not start.fence:
            return MatchedRound()
        try:
            matched = await self._plan(zone, keys_of(zone.name), looking, start.now_ms)
        except StoreUnavailable:
            raise
        except Exception:
            self.failures += 1
            log.exception("round of matching failed: the nearest are asked", zone=zone.name)
            return MatchedRound(failed=list(looking))
        return MatchedRound(start.fence, matched)

    async def _plan(
        self, zone: Zone, keys: Keys, looking: Mapping[str, TripInWaiting], now_ms: int
    ) -> list[MatchedTrip]:
        trips = [waiting_trip(zone, found, now_ms) for found in looking.values()]
        drivers = await self._drivers_around(zone, keys, trips)
        ways: Ways = {}
        if zone.matching.routing_url:
            pairs = await asyncio.to_thread(_near_pairs, trips, drivers)
            ways = await self.routing.ways(
                zone.matching.routing_url, pairs, deadline_s=zone.matching.routing_deadline_s
            )
        began = time.perf_counter()
        plan = await asyncio.to_thread(
            _plan_round, trips, drivers, zone,
            now_ms=now_ms, fix_age_ms=self._fix_age_ms, ways=ways,
        )  # fmt: skip
        self.rounds += 1
        self.planning_s += time.perf_counter() - began
        self._in_want[zone.name] = frozenset(looking) - frozenset(plan.orders)
        for vehicle_type, in_want in plan.in_want.items():
            until_ms = self._supply(zone, vehicle_type).saw_round(in_want, now_ms)
            await self._keep_scarce(zone, vehicle_type, until_ms)
        return [
            MatchedTrip(
                Trip.from_hash(found.hash_),
                round_number(found),
                is_first_wave(found),
                plan.orders.get(trip_id, ()),
            )
            for trip_id, found in looking.items()
        ]

    async def _drivers_around(
        self, zone: Zone, keys: Keys, trips: Sequence[WaitingTrip]
    ) -> list[NearbyDriver]:
        """The free drivers that any of the trips can reach, and some more."""
        places: dict[str, list[Place]] = {}
        for trip in trips:
            places.setdefault(trip.vehicle_type, []).append((trip.lat, trip.lng))
        each = {vehicle_type: _NEAREST + len(some) for vehicle_type, some in places.items()}

        async def search(vehicle_type: str, circle: Circle, most: int) -> Sequence[str]:
            return await self._scripts.around(
                keys, vehicle_type, circle.place, radius_m=circle.radius_m, most=most
            )

        names = await drivers_around(places, each, widest_reach_m(zone.waves), search)
        return await self._scripts.nearby(keys, names, max_wait_ms=longest_wait_ms(zone.waves))

    def _supply(self, zone: Zone, vehicle_type: str) -> Scarcity:
        return self._scarcity[zone.name].setdefault(vehicle_type, Scarcity(zone.matching.every_ms))

    async def _keep_scarce(self, zone: Zone, vehicle_type: str, until_ms: int | None) -> None:
        if until_ms is not None and zone.matching.dispatch == "auto":
            await self._scripts.keep_scarce(keys_of(zone.name), vehicle_type, until_ms)

    def _matches(self, zone: Zone) -> bool:
        return zone.name in self._scarcity


def _plan_round(
    trips: Sequence[WaitingTrip],
    drivers: Sequence[NearbyDriver],
    zone: Zone,
    *,
    now_ms: int,
    fix_age_ms: int,
    ways: Ways,
) -> RoundPlan:
    # Here, since it needs the extra `matching`; it was loaded at the start.
    from dispatcher.matching.planner import plan_round  # noqa: PLC0415

    return plan_round(
        trips, drivers, zone.matching,
        now_ms=now_ms, fix_age_ms=fix_age_ms, max_open_offers=zone.offers_per_driver, ways=ways,
    )  # fmt: skip


def _near_pairs(
    trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver]
) -> list[tuple[WaitingTrip, list[NearbyDriver]]]:
    from dispatcher.matching.planner import near_pairs  # noqa: PLC0415 - as above

    return near_pairs(trips, drivers)
