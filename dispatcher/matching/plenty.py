"""Which trips need not wait for a round: those with drivers enough, whatever the zone lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.spatial import KDTree

from dispatcher.core.distance import EARTH_RADIUS_M
from dispatcher.matching.model import Place, TripPlace
from dispatcher.matching.reach import on_sphere
from dispatcher.matching.scarcity import enough_around
from dispatcher.matching.score import Floats


def trips_with_plenty(
    around: Mapping[TripPlace, Sequence[Place]], waiting: Iterable[TripPlace], reach_m: float
) -> set[str]:
    """Of trips with the free drivers around them, those that have drivers enough. `waiting` are all
    trips of the zone without a driver, these among them."""
    places: dict[str, list[Place]] = {}
    for trip in waiting:
        places.setdefault(trip.vehicle_type, []).append(trip.place)
    points = {vehicle_type: on_sphere(of_type) for vehicle_type, of_type in places.items()}
    return {
        trip.trip_id
        for trip, drivers in around.items()
        if has_plenty(on_sphere(drivers), points[trip.vehicle_type], reach_m)
    }


def has_plenty(drivers: Floats, waiting: Floats, reach_m: float) -> bool:
    """Whether a trip with these drivers in its reach has enough of them, for itself and all waiting
    trips that reach any of them. All are points of the unit sphere, as of `reach.on_sphere`."""
    if not len(drivers):
        return False
    away, _ = KDTree(drivers).query(waiting, distance_upper_bound=reach_m / EARTH_RADIUS_M)
    return len(drivers) >= enough_around(int(np.isfinite(away).sum()))
