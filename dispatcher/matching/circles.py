"""Where a round looks for drivers: circles that hold all that its trips can reach, and little else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dispatcher.matching.model import Place, WaitingTrip

#: About what a degree of latitude is in m; a little less, so that no circle is too small.
_METRES_PER_DEGREE: Final = 111_000.0


class Circle(NamedTuple):
    """A circle around a place."""

    place: Place
    radius_m: float


def circles(trips: Iterable[WaitingTrip]) -> list[Circle]:
    """Circles that hold all that the trips can reach. Trips that are far apart share none, so that what
    lies between them is left out."""
    neighbours: dict[tuple[int, int], list[WaitingTrip]] = {}
    for trip in trips:
        side = 2 * trip.reach_m / _METRES_PER_DEGREE
        square = (math.floor(trip.lat / side), math.floor(trip.lng / side))
        neighbours.setdefault(square, []).append(trip)
    return [_around(near) for near in neighbours.values()]


def _around(trips: Sequence[WaitingTrip]) -> Circle:
    south, north = min(trip.lat for trip in trips), max(trip.lat for trip in trips)
    west, east = min(trip.lng for trip in trips), max(trip.lng for trip in trips)
    # A degree of longitude is no more than one of latitude, and no way to a corner is more than both.
    to_corner_m = _METRES_PER_DEGREE * 1.003 * math.hypot(north - south, east - west) / 2
    return Circle(((south + north) / 2, (west + east) / 2), max(t.reach_m for t in trips) + to_corner_m)
