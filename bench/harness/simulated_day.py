"""A day of a city's demand, against the product's own planner: no clock, no socket, no engine.

Drivers take the first offer they see at once, drive straight at one speed, and wait where they dropped
their customer off. A trip that has waited as long as its waves last is given up.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from dispatcher.core.zones import Matching, Wave
from dispatcher.demo.pickups import Pickup
from dispatcher.matching.looks import longest_wait_ms, look, widest_reach_m
from dispatcher.matching.model import NearbyDriver, RoundPlan, WaitingTrip
from dispatcher.matching.planner import plan_round
from dispatcher.matching.plenty import supplies
from dispatcher.matching.reach import chords_m, on_sphere
from dispatcher.matching.scarcity import Scarcity

DAY_S = 86_400
SPEED_MS = 22 / 3.6
FIX_AGE_MS = 60_000
#: The first come, first served of the table looks at all who wait as often as a round would.
FCFS = "first come"


class Request(NamedTuple):
    """A trip that will be asked for: when (s), from where, to where, in degrees."""

    at_s: float
    lat: float
    lng: float
    to_lat: float
    to_lng: float


def lay_over_one_day(pickups: Sequence[Pickup], first_at_s: float, seed: int) -> list[Request]:
    """All days of the file on one. The file knows the minute; the second is drawn."""
    draw = random.Random(seed)
    requests = [
        Request((first_at_s + p.after_s) % DAY_S + draw.random() * 60, p.lat, p.lng, to.lat, to.lng)
        for p, to in ((p, draw.choice(pickups)) for p in pickups)
    ]
    return sorted(requests)


class Fleet:
    """The drivers: where each is, from when on free, and what the day has brought them."""

    def __init__(self, places: Sequence[tuple[float, float]]) -> None:
        self.places = list(places)
        self.points = on_sphere(places)
        self.free_at_s = np.zeros(len(places))
        self.ridden_m = np.zeros(len(places))
        self.idle_s = np.zeros(len(places))

    def free(self, at_s: float) -> list[NearbyDriver]:
        """Those without a trip, as a round is told of them; their names are their numbers."""
        now_ms = int(at_s * 1000)
        return [
            NearbyDriver(
                str(car), *self.places[car], "car", now_ms,
                present_until_ms=now_ms + FIX_AGE_MS, free_since_ms=int(self.free_at_s[car] * 1000),
            )
            for car in np.flatnonzero(self.free_at_s <= at_s)
        ]  # fmt: skip

    def in_reach(self, at_s: float, point: Any, reach_m: float) -> tuple[Any, Any]:
        """The free cars in reach, nearest first, and how far (m) each is: as GEOSEARCH finds them."""
        cars = np.flatnonzero(self.free_at_s <= at_s)
        distance_m = chords_m(point[None, :], self.points[cars])[0]
        order = np.argsort(distance_m, kind="stable")
        order = order[distance_m[order] <= reach_m]
        return cars[order], distance_m[order]


@dataclass(slots=True)
class Day:
    """What came of it: of each trip served its way (m) and wait (s); of each round its cost."""

    asked: int
    fleet: Fleet
    ways_m: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    rounds_ms: list[float] = field(default_factory=list)

    @property
    def served(self) -> float:
        return len(self.ways_m) / self.asked

    @property
    def way_km(self) -> float:
        return float(np.mean(self.ways_m)) / 1000

    @property
    def wait_min(self) -> float:
        return float(np.mean(self.waits_s)) / 60

    @property
    def wait_p90_min(self) -> float:
        return float(np.percentile(self.waits_s, 90)) / 60

    @property
    def idle(self) -> float:
        """The drivers' share of the day without a trip."""
        return float(self.fleet.idle_s.mean()) / DAY_S

    @property
    def gini(self) -> float:
        """Of the kilometres with a customer, the drivers' income: 0 is equal, 1 is all for one."""
        incomes = np.sort(self.fleet.ridden_m)
        ranks = np.arange(1, len(incomes) + 1)
        return float((2 * ranks - len(incomes) - 1) @ incomes / (len(incomes) * incomes.sum()))


class City:
    """One run of the day with one policy."""

    def __init__(
        self,
        requests: Sequence[Request],
        drivers: int,
        policy: str,
        waves: Sequence[Wave],
        seed: int,
        *,
        every_s: float = Matching().every_s,
    ) -> None:
        draw = random.Random(seed)
        places = [draw.choice(requests) for _ in range(drivers)]
        self.fleet = Fleet([(p.to_lat, p.to_lng) for p in places])
        self.pickups = on_sphere([(r.lat, r.lng) for r in requests])
        self.dropoffs = on_sphere([(r.to_lat, r.to_lng) for r in requests])
        self.requests = requests
        self.policy = policy
        self.waves = waves
        self.rules = Matching(speed_kmh=22.0, every_s=every_s)
        self.scarcity = Scarcity(self.rules.every_ms)
        self.matched_until_s = 0.0
        self.looked: dict[int, int] = {}  # how often each waiting trip has looked for a driver
        self.parked: list[int] = []  # trips that wait for the next round
        self.day = Day(len(requests), self.fleet)
        self.number = count()
        self.due: list[tuple[float, int, int]] = []

    def run(self) -> Day:
        for index, request in enumerate(self.requests):
            self._look_at(request.at_s, index)
        next_round_s = 0.0
        while self.due or self.parked:
            if self.parked and (not self.due or next_round_s <= self.due[0][0]):
                at_s, trips = next_round_s, self.parked
                self.parked = []
                self._round(at_s, trips)
                next_round_s = at_s + self.rules.every_s
                continue
            at_s, _, index = heapq.heappop(self.due)
            self.looked.setdefault(index, 0)
            if self._waits_for_a_round(at_s, index):
                next_round_s = max(next_round_s, at_s)
                self.parked.append(index)
            else:
                self._ask_nearest(at_s, index)
        self.fleet.idle_s += np.maximum(0.0, DAY_S - self.fleet.free_at_s)
        return self.day

    def _waits_for_a_round(self, at_s: float, index: int) -> bool:
        if self.policy in ("matched", FCFS):
            return True
        if self.policy == "nearest" or at_s >= self.matched_until_s:
            return False
        if self.looked[index]:
            return True
        reach_m = widest_reach_m(self.waves)
        cars, _ = self.fleet.in_reach(at_s, self.pickups[index], reach_m)
        waiting = list(self.looked)
        (found,) = supplies(
            [waiting.index(index)], self.pickups[waiting], self.fleet.points[cars], reach_m
        )
        return not found.is_plenty()

    def _look_at(self, at_s: float, index: int) -> None:
        heapq.heappush(self.due, (at_s, next(self.number), index))

    def _ask_nearest(self, at_s: float, index: int) -> None:
        step = look(self.waves, self.looked[index])
        cars, distance_m = self.fleet.in_reach(at_s, self.pickups[index], step.wave.radius_m)
        if len(cars):
            self._take(at_s, index, cars[0], distance_m[0])
        elif not self._gives_up(at_s, index):
            self.looked[index] += 1
            if step.is_widest and self.policy == "auto":
                self._note(self.scarcity.found_nobody(str(index), int(at_s * 1000)))
            self._look_at(at_s + step.again_ms / 1000, index)

    def _round(self, at_s: float, trips: list[int]) -> None:
        waiting = [self._trip(i) for i in trips]
        if self.policy == FCFS:
            for index in sorted(trips):
                cars, distance_m = self.fleet.in_reach(
                    at_s, self.pickups[index], self.waves[-1].radius_m
                )
                if len(cars):
                    self._take(at_s, index, cars[0], distance_m[0])
        else:
            self._match(at_s, waiting)
        for index in trips:
            if index in self.looked and not self._gives_up(at_s, index):
                self.looked[index] += 1
                self.parked.append(index)
        if self.policy == "auto" and at_s >= self.matched_until_s:
            for index in self.parked:
                self._look_at(at_s, index)
            self.parked = []

    def _match(self, at_s: float, waiting: list[WaitingTrip]) -> RoundPlan:
        drivers = self.fleet.free(at_s)
        began = time.perf_counter()
        plan = plan_round(
            waiting, drivers, self.rules,
            now_ms=int(at_s * 1000), fix_age_ms=FIX_AGE_MS, max_open_offers=3,
        )  # fmt: skip
        self.day.rounds_ms.append((time.perf_counter() - began) * 1000)
        for trip_id, order in plan.orders.items():
            self._take(at_s, int(trip_id), int(order[0].driver_id), order[0].distance_m)
        self._note(self.scarcity.saw_round(sum(plan.in_want.values()), int(at_s * 1000)))
        return plan

    def _note(self, until_ms: int | None) -> None:
        if until_ms is not None:
            self.matched_until_s = until_ms / 1000

    def _take(self, at_s: float, index: int, car: int, way_m: float) -> None:
        request, fleet = self.requests[index], self.fleet
        ride_m = chords_m(self.pickups[index][None, :], self.dropoffs[index][None, :])[0, 0]
        fleet.idle_s[car] += at_s - fleet.free_at_s[car]
        fleet.free_at_s[car] = at_s + (way_m + ride_m) / SPEED_MS
        fleet.places[car], fleet.points[car] = (request.to_lat, request.to_lng), self.dropoffs[index]
        fleet.ridden_m[car] += ride_m
        self.day.ways_m.append(way_m)
        self.day.waits_s.append(at_s - request.at_s + way_m / SPEED_MS)
        del self.looked[index]

    def _gives_up(self, at_s: float, index: int) -> bool:
        if (at_s - self.requests[index].at_s) * 1000 < longest_wait_ms(self.waves):
            return False
        del self.looked[index]
        return True

    def _trip(self, index: int) -> WaitingTrip:
        request, reach_m = self.requests[index], widest_reach_m(self.waves)
        since_ms = int(request.at_s * 1000)
        return WaitingTrip(str(index), request.lat, request.lng, "car", since_ms, reach_m)
