"""Free drivers around many trips, read in a few bounded searches; every trip has its nearest ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, TypeVar

from dispatcher.matching.circles import Circle, circles, small_circles
from dispatcher.matching.model import Place

#: Drivers of one look at most.
MOST_DRIVERS: Final = 5_000
#: Searches that are on their way together: other calls of this server wait for no more of them.
_SEARCHES_AT_ONCE: Final = 20

Found = TypeVar("Found", bound=Hashable)
#: Of a vehicle type, the free drivers in a circle, nearest to its middle first, so many at most.
Search = Callable[[str, Circle, int], Coroutine[Any, Any, Sequence[Found]]]


async def drivers_around(
    places: Mapping[str, Sequence[Place]], each: Mapping[str, int], reach_m: float, search: Search[Found]
) -> list[Found]:
    """Free drivers within `reach_m` of the places of trips, by vehicle type, `MOST_DRIVERS` at most:
    all of them, or the `each` nearest ones of every trip."""
    near_m = {vehicle: small_circles(of_type, reach_m) for vehicle, of_type in places.items()}
    if sum(len(near) * each[vehicle] for vehicle, near in near_m.items()) > MOST_DRIVERS:
        whole = [
            (v, circle, MOST_DRIVERS) for v, some in places.items() for circle in circles(some, reach_m)
        ]
        found = await _search(whole, search)
        names = dict.fromkeys(name for some in found for name in some)
        if len(names) <= MOST_DRIVERS and all(len(some) < MOST_DRIVERS for some in found):
            return list(names)
    # The nearest to the middle of a large circle would be those of its crowds alone.
    near = [(vehicle, circle, each[vehicle]) for vehicle, some in near_m.items() for circle in some]
    found = await _search(near, search)
    in_turn = (name for names in zip_longest(*found) for name in names if name is not None)
    return list(dict.fromkeys(in_turn))[:MOST_DRIVERS]


async def _search(
    looks: Sequence[tuple[str, Circle, int]], search: Search[Found]
) -> list[Sequence[Found]]:
    found: list[Sequence[Found]] = []
    for i in range(0, len(looks), _SEARCHES_AT_ONCE):
        found += await asyncio.gather(*(search(*look) for look in looks[i : i + _SEARCHES_AT_ONCE]))
    return found
