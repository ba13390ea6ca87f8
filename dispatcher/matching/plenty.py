"""Which trips need not wait for a round: those with drivers enough, whatever the zone lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from dispatcher.matching.model import TripPlace
from dispatcher.matching.reach import chords_m, on_sphere
from dispatcher.matching.scarcity import enough_around, is_outnumbered
from dispatcher.matching.score import Floats

#: Trips whose distances are worked out at once: with 5,000 drivers these take 10 MB.
_ROWS: Final = 256
#: Drivers are compared 64 at a time.
_WORD: Final = 64


class Supply(NamedTuple):
    """Free drivers in a trip's reach, and trips, it among them, that reach any of these."""

    drivers: int
    trips: int

    def is_plenty(self) -> bool:
        """Whether a trip with it need not wait for a round."""
        return self.drivers > 0 and self.drivers >= enough_around(self.trips)

    def is_short(self) -> bool:
        """Whether there are no more drivers than trips that compete for them."""
        return is_outnumbered(self.trips, self.drivers)


def supply_by_trip(
    asking: Collection[str],
    waiting: Iterable[TripPlace],
    drivers: Mapping[str, Sequence[tuple[str | float, str | float]]],
    reach_m: float,
) -> dict[str, Supply]:
    """What the trips that ask find. `waiting` are all trips of the zone without a driver, these among
    them; `drivers` by vehicle type are where free ones are, in degrees, be it in text."""
    by_type: dict[str, list[TripPlace]] = {}
    for trip in waiting:
        by_type.setdefault(trip.vehicle_type, []).append(trip)
    found: dict[str, Supply] = {}
    for vehicle_type, of_type in by_type.items():
        rows = [row for row, trip in enumerate(of_type) if trip.trip_id in asking]
        around = on_sphere([(float(lat), float(lng)) for lat, lng in drivers.get(vehicle_type, ())])
        of_rows = supplies(rows, on_sphere([trip.place for trip in of_type]), around, reach_m)
        found |= zip((of_type[row].trip_id for row in rows), of_rows, strict=True)
    return found


def supplies(rows: Sequence[int], trips: Floats, drivers: Floats, reach_m: float) -> list[Supply]:
    """What these rows of the waiting trips find. All are points of the unit sphere, as of
    `reach.on_sphere`."""
    if not rows:
        return []
    # Of each trip whom it reaches, a bit a driver: who shares one is then a matter of words.
    bits = np.zeros((len(trips), -(-len(drivers) // _WORD) * _WORD // 8), dtype=np.uint8)
    amounts = np.zeros(len(trips), dtype=np.intp)
    for first in range(0, len(trips), _ROWS):
        some = slice(first, first + _ROWS)
        near = chords_m(trips[some], drivers) < reach_m
        amounts[some] = np.count_nonzero(near, axis=1)
        packed = np.packbits(near, axis=1)
        bits[some, : packed.shape[1]] = packed
    reached = bits.view(np.uint64)
    return [
        Supply(int(amounts[row]), int(np.count_nonzero((reached & reached[row]).any(axis=1))))
        for row in rows
    ]
