"""A trip before and after its round of matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from dispatcher.core.trips import Status, Trip
from dispatcher.core.zones import Zone
from dispatcher.live.matching import TripInWaiting
from dispatcher.live.offers import goes_on
from dispatcher.live.shapes import check_trip
from dispatcher.matching.looks import look, widest_reach_m
from dispatcher.matching.model import RankedDriver, WaitingTrip


@dataclass(frozen=True, slots=True)
class MatchedTrip:
    """A trip of a round: its hash's round number, and whom it asks, the matched driver first.

    Only the first wave of a trip begins with a head start.
    """

    trip: Trip
    round_number: int
    is_first_wave: bool
    order: Sequence[RankedDriver]

    def scores(self) -> dict[str, str]:
        """For each driver, as JSON: their score and its parts, and those of the others of the order."""
        return {
            asked.driver_id: orjson.dumps(
                asked.score.to_json() | {"next": [r.to_json() for r in self.order if r is not asked]}
            ).decode()
            for asked in self.order
        }


def looks_for_a_driver(trip_id: str, trip: TripInWaiting) -> bool:
    """Whether a trip is pending, nobody holds an offer of it, and no wave of it is to go on."""
    try:
        check_trip(trip.hash_, trip_id)
        is_read = int(trip.hash_.get("round") or 0) + int(trip.hash_.get("waiting_since") or 0) >= 0
        return (
            is_read
            and trip.hash_["current_status"] == Status.PENDING
            and not trip.open_offers
            and not goes_on(trip.hash_)
        )
    except (ValueError, TypeError, LookupError):
        return False  # its own wave finds out: no other trip's round fails with it


def is_first_wave(found: TripInWaiting) -> bool:
    """Whether no wave of the trip has begun."""
    return not found.hash_.get("head_start") and not int(found.hash_.get("wave") or 0)


def round_number(found: TripInWaiting) -> int:
    """How often drivers were looked for before."""
    return int(found.hash_.get("round") or 0)


def waiting_trip(zone: Zone, found: TripInWaiting, now_ms: int) -> WaitingTrip:
    """What a round of matching looks at."""
    trip = Trip.from_hash(found.hash_)
    step = look(zone.waves, round_number(found))
    return WaitingTrip(
        trip_id=trip.id,
        lat=trip.pickup_lat,
        lng=trip.pickup_lng,
        vehicle_type=trip.vehicle_type,
        waiting_since_ms=int(found.hash_.get("waiting_since") or now_ms),
        reach_m=widest_reach_m(zone.waves),
        excluded=found.barred if step.is_widest else found.barred | found.passed,
    )
