"""A car on a straight line: where it is at any time is calculated, so nothing has to tick."""

from __future__ import annotations

import math
import time
from typing import Final

Place = tuple[float, float]

#: Mean Earth radius (IUGG), as in the database's distance_m().
_RADIUS_M: Final = 6_371_008.8


def distance_m(a: Place, b: Place) -> float:
    """Metres between two (lat, lng) of one city: on the plane, which errs by 0.1 % at 50 km."""
    north = math.radians(b[0] - a[0])
    east = math.radians(b[1] - a[1]) * math.cos(math.radians((a[0] + b[0]) / 2))
    return _RADIUS_M * math.hypot(north, east)


class Car:
    """Stands, or moves towards a place at its speed in metres a (real) second."""

    def __init__(self, place: Place, speed_m_s: float) -> None:
        self._from = self._to = place
        self._since = 0.0
        self._takes_s = 0.0
        self._speed_m_s = speed_m_s

    @property
    def place(self) -> Place:
        """Where the car is now."""
        if not self._takes_s:
            return self._to
        part = min(1.0, (time.monotonic() - self._since) / self._takes_s)
        (lat, lng), (to_lat, to_lng) = self._from, self._to
        return lat + (to_lat - lat) * part, lng + (to_lng - lng) * part

    @property
    def moving(self) -> bool:
        """Whether it is on its way."""
        return time.monotonic() - self._since < self._takes_s

    def head_for(self, place: Place) -> float:
        """Sets off; returns the seconds until it is there."""
        self._from, self._to, self._since = self.place, place, time.monotonic()
        self._takes_s = distance_m(self._from, place) / self._speed_m_s
        return self._takes_s

    def stop(self) -> None:
        """Stays where it is."""
        self._from = self._to = self.place
        self._takes_s = 0.0
