"""A car that drives in a straight line. Its position is calculated when asked for, so no timer runs."""

from __future__ import annotations

import math
import time
from typing import Final

#: (lat, lng) in degrees.
Position = tuple[float, float]

#: Mean Earth radius (IUGG), as in the database's distance_m().
_RADIUS_M: Final = 6_371_008.8


def distance_m(a: Position, b: Position) -> float:
    """Metres between two positions of one city, calculated on the plane: 0.1 % off at 50 km."""
    north = math.radians(b[0] - a[0])
    east = math.radians(b[1] - a[1]) * math.cos(math.radians((a[0] + b[0]) / 2))
    return _RADIUS_M * math.hypot(north, east)


class Car:
    """Stands, or drives towards a position at a constant speed in metres a real second."""

    def __init__(self, position: Position, speed_m_s: float) -> None:
        self._from = self._to = position
        self._departed_at = 0.0
        self._duration_s = 0.0
        self._speed_m_s = speed_m_s

    @property
    def position(self) -> Position:
        """Where the car is now."""
        if not self._duration_s:
            return self._to
        travelled = min(1.0, (time.monotonic() - self._departed_at) / self._duration_s)
        (lat, lng), (to_lat, to_lng) = self._from, self._to
        return lat + (to_lat - lat) * travelled, lng + (to_lng - lng) * travelled

    @property
    def moving(self) -> bool:
        """Whether the car is driving."""
        return time.monotonic() - self._departed_at < self._duration_s

    def drive_to(self, position: Position) -> float:
        """Departs; returns the seconds until it arrives."""
        self._from, self._to, self._departed_at = self.position, position, time.monotonic()
        self._duration_s = distance_m(self._from, position) / self._speed_m_s
        return self._duration_s

    def stop(self) -> None:
        """Stops at the present position."""
        self._from = self._to = self.position
        self._duration_s = 0.0
