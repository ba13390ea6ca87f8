"""The cost of asking a driver for a trip, in seconds of way: the least is the best.

    total = way - waiting * weights.waiting - idle * weights.idle
            + turned down * weights.turned_down_s + open * weights.open_offer_s

way          seconds from driver to pickup: the great circle at the zone's speed, or by road where
             a routing engine has said; a day more where it says that there is no road. What everybody
             waits for.
waiting      seconds the trip has waited. It decides between trips that want the same driver.
idle         seconds the driver has had no trip, half an hour at most. It decides between drivers who are
             about as near, so that work is shared.
turned down  offers in a row the driver declined or let pass, five at most: each may cost a head start.
open         offers the driver may still take instead of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatcher.core.zones import Matching
from dispatcher.matching.model import NO_ROAD, NearbyDriver, Score, WaitingTrip, Ways

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.intp]

#: What is known of a driver's morning says little of this hour, and nobody is to be shut out for good.
_MAX_IDLE_S: Final = 1_800.0
_MAX_TURNED_DOWN: Final = 5
#: A pair between whom there is no road costs a day more: who has a road is asked before them, whatever
#: the weights say, and a map that lacks a bridge leaves no trip without a driver.
_NO_ROAD_S: Final = 86_400.0
#: The usual detour, as the ratio of ways by road to those by air at the zone's speed: what lies outside
#: says something of few odd pairs, or of the speed.
_LEAST_DETOUR: Final = 0.5
_MOST_DETOUR: Final = 5.0


class Scores:
    """The scores of all pairs. `total_s` has a row a trip and a column a driver."""

    def __init__(
        self,
        trips: Sequence[WaitingTrip],
        drivers: Sequence[NearbyDriver],
        distance_m: Floats,
        rules: Matching,
        *,
        now_ms: int,
        ways: Ways,
    ) -> None:
        weights = rules.weights
        self._way_s = distance_m * (3.6 / rules.speed_kmh)
        if ways:
            _take_roads(self._way_s, trips, drivers, ways)
        waited_s = np.array([max(0, now_ms - trip.waiting_since_ms) / 1000 for trip in trips])
        self._waiting_s = -weights.waiting * waited_s
        self._idle_s = -weights.idle * np.array([_idle_s(driver, now_ms) for driver in drivers])
        self._turned_down_s = weights.turned_down_s * np.array(
            [min(driver.turned_down, _MAX_TURNED_DOWN) for driver in drivers], dtype=float
        )
        self._open_offers_s = weights.open_offer_s * np.array(
            [driver.open_offers for driver in drivers], dtype=float
        )
        of_driver = self._idle_s + self._turned_down_s + self._open_offers_s
        self.total_s: Floats = self._way_s + self._waiting_s[:, None]
        self.total_s += of_driver[None, :]

    def of(self, rows: Indexes, columns: Indexes) -> list[Score]:
        """The scores of some pairs with their parts, in the order of the indexes."""
        parts = zip(
            self.total_s[rows, columns].tolist(),
            self._way_s[rows, columns].tolist(),
            self._waiting_s[rows].tolist(),
            self._idle_s[columns].tolist(),
            self._turned_down_s[columns].tolist(),
            self._open_offers_s[columns].tolist(),
            strict=True,
        )
        return [Score(*of_pair) for of_pair in parts]


def _take_roads(
    way_s: Floats, trips: Sequence[WaitingTrip], drivers: Sequence[NearbyDriver], ways: Ways
) -> None:
    """Puts the ways by road where they are known.

    The others are made longer by the usual detour: a pair must not win because nobody asked about it.
    """
    trip_at = {trip.trip_id: i for i, trip in enumerate(trips)}
    driver_at = {driver.driver_id: j for j, driver in enumerate(drivers)}
    known = [
        (trip_at[trip_id], driver_at[driver_id], by_road_s)
        for (trip_id, driver_id), by_road_s in ways.items()
        if trip_id in trip_at and driver_id in driver_at
    ]
    detours = [
        by_road_s / way_s[i, j] for i, j, by_road_s in known if way_s[i, j] > 0 and by_road_s != NO_ROAD
    ]
    if detours:
        way_s *= min(_MOST_DETOUR, max(_LEAST_DETOUR, float(np.median(detours))))
    for i, j, by_road_s in known:
        way_s[i, j] = by_road_s if by_road_s != NO_ROAD else way_s[i, j] + _NO_ROAD_S


def _idle_s(driver: NearbyDriver, now_ms: int) -> float:
    if driver.free_since_ms is None:
        return 0.0
    return min(_MAX_IDLE_S, max(0, now_ms - driver.free_since_ms) / 1000)
