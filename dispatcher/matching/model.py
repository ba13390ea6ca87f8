"""What a round of matching looks at, and what it comes to. Plain values: no library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dispatcher.core.drivers import AvailabilityStatus, is_free

#: lat and lng in degrees.
Place = tuple[float, float]


class TripPlace(NamedTuple):
    """Where a trip begins, and which drivers it asks for."""

    trip_id: str
    place: Place
    vehicle_type: str


@dataclass(frozen=True, slots=True)
class WaitingTrip:
    """A pending trip without an open offer. Position in degrees, time in ms since the epoch."""

    trip_id: str
    lat: float
    lng: float
    vehicle_type: str
    waiting_since_ms: int
    #: How far the widest of its waves reaches.
    reach_m: float
    #: Drivers who may not have it: they declined it, gave it back, or let it pass a short while ago.
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NearbyDriver:
    """A driver as Redis knows them. Position in degrees, times in ms since the epoch."""

    driver_id: str
    lat: float
    lng: float
    vehicle_type: str
    fix_ms: int
    is_online: bool = True
    availability_status: str = AvailabilityStatus.AVAILABLE
    trip_id: str = ""
    #: The end of their presence; 0: they are absent.
    present_until_ms: int = 0
    open_offers: int = 0
    #: Offers in a row that they declined or let pass.
    turned_down: int = 0
    #: Since when they have no trip; None: not known.
    free_since_ms: int | None = None

    def may_be_offered(self, now_ms: int, *, fix_age_ms: int, max_open_offers: int) -> bool:
        """What lua/offer_trip.lua asks of a driver, whatever the trip. The script decides again."""
        return (
            is_free(
                is_online=self.is_online,
                availability_status=self.availability_status,
                trip_id=self.trip_id,
            )
            and self.fix_ms > now_ms - fix_age_ms
            and self.present_until_ms > now_ms
            and self.open_offers < max_open_offers
        )


class Score(NamedTuple):
    """The cost of a pair, in seconds of way, and its parts: what is negative speaks for the pair."""

    total_s: float
    way_s: float
    waiting_s: float
    idle_s: float
    turned_down_s: float
    open_offers_s: float

    def to_json(self) -> dict[str, float]:
        """The score for people to read, to a tenth of a second."""
        return {name: round(seconds, 1) for name, seconds in self._asdict().items()}


class RankedDriver(NamedTuple):
    """A driver in the order in which a trip asks."""

    driver_id: str
    distance_m: float
    score: Score

    def to_json(self) -> dict[str, Any]:
        """The driver and the score for people to read."""
        return {
            "driver_id": self.driver_id,
            "distance_m": round(self.distance_m, 1),
            **self.score.to_json(),
        }


#: The way of a pair between whom there is no road, as far as a routing engine knows.
NO_ROAD: Final = math.inf
#: Seconds from driver to pickup by (trip, driver), where a routing engine has said.
Ways = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round comes to.

    `orders` has a list for each trip that was matched: the matched driver, then the next nearest ones. A
    trip without one has no driver in this round. `in_want` counts, by vehicle type, the trips that have
    none, or compete for drivers who are scarce (`scarcity.are_scarce`).
    """

    in_want: Mapping[str, int] = field(default_factory=dict)
    orders: Mapping[str, Sequence[RankedDriver]] = field(default_factory=dict)
