"""Where drivers are looked for: circles that hold all that some trips can reach, and little else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dispatcher.matching.model import Place

#: About what a degree of latitude is in m; a little less, so that no circle is too small.
_METRES_PER_DEGREE: Final = 111_000.0
#: The middle of a small circle is near each of its trips: some 1 km where they reach 12.
_SMALL: Final = 1 / 8
#: As many searches of some ms keep Redis busy for less than half a second, in turn with other calls.
_MOST_SMALL: Final = 200


class Circle(NamedTuple):
    """A circle around a place, and how many trips it is for."""

    place: Place
    radius_m: float
    trips: int


def circles(places: Iterable[Place], reach_m: float) -> list[Circle]:
    """Circles that hold all within `reach_m` of the places. Places that are far apart share none, so
    that what lies between them is left out."""
    return _circles(places, reach_m, 2 * reach_m)


def small_circles(places: Sequence[Place], reach_m: float) -> list[Circle]:
    """The same for places that are near each other, as far as their number allows: whoever is nearest to
    the middle of such a circle is about nearest to each of its places."""
    side_m = reach_m * _SMALL
    found = _circles(places, reach_m, side_m)
    while len(found) > _MOST_SMALL and side_m < 2 * reach_m:
        side_m *= 2
        found = _circles(places, reach_m, side_m)
    return found


def _circles(places: Iterable[Place], reach_m: float, side_m: float) -> list[Circle]:
    side = side_m / _METRES_PER_DEGREE
    neighbours: dict[tuple[int, int], list[Place]] = {}
    for lat, lng in places:
        square = (math.floor(lat / side), math.floor(lng / side))
        neighbours.setdefault(square, []).append((lat, lng))
    return [_around(near, reach_m) for near in neighbours.values()]


def _around(places: Sequence[Place], reach_m: float) -> Circle:
    south, north = min(lat for lat, _ in places), max(lat for lat, _ in places)
    west, east = min(lng for _, lng in places), max(lng for _, lng in places)
    # A degree of longitude is no more than one of latitude, and no way to a corner is more than both.
    to_corner_m = _METRES_PER_DEGREE * 1.003 * math.hypot(north - south, east - west) / 2
    return Circle(((south + north) / 2, (west + east) / 2), reach_m + to_corner_m, len(places))
