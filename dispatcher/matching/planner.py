"""One round: all waiting trips and all free drivers are decided on together. Pure, and of one thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from dispatcher.core.zones import Matching
from dispatcher.matching.assignment import Flags, assign
from dispatcher.matching.model import NearbyDriver, RankedDriver, RoundPlan, WaitingTrip, Ways
from dispatcher.matching.reach import distances_m
from dispatcher.matching.score import Floats, Scores

#: Beside the matched driver: asked in their place should they be gone by then, and shown in the audit.
_NEXT_NEAREST: Final = 3
#: Roads tell near drivers apart; who is further away is told apart well enough without.
_ROUTED: Final = 8


def plan_round(
    trips: Sequence[WaitingTrip],
    drivers: Sequence[NearbyDriver],
    rules: Matching,
    *,
    now_ms: int,
    fix_age_ms: int,
    max_open_offers: int,
    ways: Ways | None = None,
) -> RoundPlan:
    """Whom each trip asks first. Nobody is matched twice, out of reach, excluded, or not to be offered
    anything; as many trips as can be have a driver, and of those plans the cheapest is taken."""
    free = [
        driver
        for driver in drivers
        if driver.may_be_offered(now_ms, fix_age_ms=fix_age_ms, max_open_offers=max_open_offers)
    ]
    if not trips or not free:
        return RoundPlan(waiting=len(trips))
    distance_m = distances_m(trips, free)
    allowed = _allowed(trips, free, distance_m)
    scores = Scores(trips, free, distance_m, rules, now_ms=now_ms, ways=ways or {})
    orders = {
        trips[row].trip_id: [
            RankedDriver(free[j].driver_id, float(distance_m[row, j]), scores.of(row, j))
            for j in (column, *_next_nearest(distance_m[row], allowed[row], column))
        ]
        for row, column in assign(scores.total_s, allowed)
    }
    return RoundPlan(len(trips), int(allowed.any(axis=0).sum()), orders)


def near_pairs(
    trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver]
) -> list[tuple[WaitingTrip, list[NearbyDriver]]]:
    """For each trip the nearest drivers in its reach: those whose ways by road are worth a question."""
    if not trips or not drivers:
        return []
    distance_m = distances_m(trips, drivers)
    allowed = _allowed(trips, drivers, distance_m)
    return [
        (trip, [drivers[j] for j in _nearest(distance_m[i], allowed[i])[:_ROUTED]])
        for i, trip in enumerate(trips)
    ]


def _allowed(trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver], distance_m: Floats) -> Flags:
    """Which pairs may be: in reach, of the trip's vehicle type, and not excluded."""
    kinds = {kind: number for number, kind in enumerate({d.vehicle_type for d in drivers})}
    of_trips = np.array([kinds.get(trip.vehicle_type, -1) for trip in trips])
    of_drivers = np.array([kinds[driver.vehicle_type] for driver in drivers])
    reach_m = np.array([trip.reach_m for trip in trips])
    allowed: Flags = (distance_m <= reach_m[:, None]) & (of_trips[:, None] == of_drivers[None, :])
    column_of = {driver.driver_id: j for j, driver in enumerate(drivers)}
    for i, trip in enumerate(trips):
        for driver_id in trip.excluded:
            if (j := column_of.get(driver_id)) is not None:
                allowed[i, j] = False
    return allowed


def _next_nearest(distance_m: Floats, allowed: Flags, matched: int) -> list[int]:
    """The columns of the nearest drivers beside the matched one."""
    return [j for j in _nearest(distance_m, allowed) if j != matched][:_NEXT_NEAREST]


def _nearest(distance_m: Floats, allowed: Flags) -> list[int]:
    """The columns of the nearest drivers, the nearest first; as many as anybody here asks for."""
    columns = np.flatnonzero(allowed)
    nearest = columns[np.argsort(distance_m[columns], kind="stable")]
    return [int(j) for j in nearest[: max(_ROUTED, _NEXT_NEAREST + 1)]]
