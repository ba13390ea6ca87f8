"""How far two places are from each other."""

from __future__ import annotations

import math
from typing import Final

#: Redis' own: a distance is the same here and in GEOSEARCH.
EARTH_RADIUS_M: Final = 6_372_797.560856


def great_circle_m(lat: float, lng: float, other_lat: float, other_lng: float) -> float:
    """Metres over the sphere between two places in degrees."""
    u = math.sin(math.radians(other_lat - lat) / 2)
    v = math.sin(math.radians(other_lng - lng) / 2)
    across = u * u + math.cos(math.radians(lat)) * math.cos(math.radians(other_lat)) * v * v
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(across)))
