"""One round: all waiting trips and all free drivers are decided on together. Pure, and of one thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from dispatcher.core.zones import Matching
from dispatcher.matching.assignment import assign, connected_parts
from dispatcher.matching.model import (
    NO_ROAD,
    NearbyDriver,
    RankedDriver,
    RoundPlan,
    WaitingTrip,
    Ways,
)
from dispatcher.matching.reach import distances_m
from dispatcher.matching.scarcity import are_scarce
from dispatcher.matching.score import Flags, Floats, Indexes, Scores

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
        return RoundPlan(Counter(trip.vehicle_type for trip in trips))
    distance_m = distances_m(trips, free)
    allowed = _allowed(trips, free, distance_m)
    scores = Scores(trips, free, distance_m, rules, now_ms=now_ms, ways=ways or {})
    parts = list(connected_parts(allowed))
    beside = np.where(allowed, distance_m, np.inf)
    _leave_out_without_road(beside, trips, free, ways or {})
    near = _nearest(beside, _NEXT_NEAREST + 1)
    pairs = [
        (row, j)
        for row, column in assign(scores.total_s, allowed, parts)
        for j in (column, *[j for j in near[row] if j != column][:_NEXT_NEAREST])
    ]
    rows, columns = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    orders: dict[str, list[RankedDriver]] = {}
    for row, column, distance, score in zip(
        rows, columns, distance_m[rows, columns].tolist(), scores.of(rows, columns), strict=True
    ):
        ranked = RankedDriver(free[column].driver_id, distance, score)
        orders.setdefault(trips[row].trip_id, []).append(ranked)
    in_want = Counter(trip.vehicle_type for trip in trips)
    in_want -= Counter(
        trips[row].vehicle_type
        for of_part, drivers_of_part in parts
        if not are_scarce(len(of_part), len(drivers_of_part))
        for row in of_part
        if trips[row].trip_id in orders
    )
    return RoundPlan(in_want, orders)


def near_pairs(
    trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver]
) -> list[tuple[WaitingTrip, list[NearbyDriver]]]:
    """For each trip the nearest drivers in its reach: those whose ways by road are worth a question."""
    if not trips or not drivers:
        return []
    distance_m = distances_m(trips, drivers)
    allowed = _allowed(trips, drivers, distance_m)
    near = _nearest(np.where(allowed, distance_m, np.inf), _ROUTED)
    return [(trip, [drivers[j] for j in near[i]]) for i, trip in enumerate(trips)]


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


def _leave_out_without_road(
    distance_m: Floats, trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver], ways: Ways
) -> None:
    """Puts pairs between whom there is no road at infinity."""
    without = [pair for pair, way_s in ways.items() if way_s == NO_ROAD]
    if not without:
        return
    row_of = {trip.trip_id: i for i, trip in enumerate(trips)}
    column_of = {driver.driver_id: j for j, driver in enumerate(drivers)}
    for trip_id, driver_id in without:
        if trip_id in row_of and driver_id in column_of:
            distance_m[row_of[trip_id], column_of[driver_id]] = np.inf


def _nearest(distance_m: Floats, most: int) -> list[list[int]]:
    """For each row the columns of its nearest drivers, the nearest first; without those at infinity."""
    count = min(most, distance_m.shape[1])
    columns: Indexes = np.argpartition(distance_m, count - 1, axis=1)[:, :count]
    of_columns = np.take_along_axis(distance_m, columns, axis=1)
    order = np.argsort(of_columns, axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1)
    found = np.isfinite(np.take_along_axis(of_columns, order, axis=1))
    return [row[is_near].tolist() for row, is_near in zip(columns, found, strict=True)]
