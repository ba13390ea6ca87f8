"""What the simulator promises where drivers are as scarce as they were on the running service."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dispatcher.core.zones import Wave
from dispatcher.demo.car import distance_m
from harness.simulated_day import City, Request

#: As the city's customers ride (dispatcher/demo/city.py), in m.
RIDE_M, DRAWS = (800, 10_000), 20
#: The search for as many drivers as serve the same share ends when it is so near.
SHARE_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class Load:
    """Trips asked for, and those of all simulated runs together; how many a simulated second, at which
    places; the waves; and the time between two rounds in simulated s."""

    trips: int
    simulated_trips: int
    rate: float
    places: Sequence[tuple[float, float]]
    waves: Sequence[Wave]
    every_s: float

    def runs(self) -> list[list[Request]]:
        """As many as a figure is the mean of, each of as many trips as the service was asked for."""
        return [self._requests(seed) for seed in range(max(1, self.simulated_trips // self.trips))]

    def _requests(self, seed: int) -> list[Request]:
        draw = random.Random(seed)
        found, at_s = [], 0.0
        for _ in range(self.trips):
            at_s += draw.expovariate(self.rate)
            pickup = draw.choice(self.places)
            for _ in range(DRAWS):
                dropoff = draw.choice(self.places)
                if RIDE_M[0] <= distance_m(pickup, dropoff) <= RIDE_M[1]:
                    break
            found.append(Request(at_s, *pickup, *dropoff))
        return found


def promised(load: Load, share: float, policies: Sequence[str]) -> dict[str, tuple[float, float]]:
    """By policy the share served and the way in m, of the fleet of which `nearest` serves that share.

    The running service has what the simulator leaves out (boarding, breaks, lost races), all of which
    make drivers scarcer: so the same scarcity is another number of drivers.
    """
    runs = load.runs()

    def simulate(drivers: int, policy: str) -> tuple[float, float]:
        days = [
            City(run, drivers, policy, load.waves, seed, every_s=load.every_s).run()
            for seed, run in enumerate(runs)
        ]
        ways_m = [way_m for day in days for way_m in day.ways_m]
        return float(np.mean([day.served for day in days])), float(np.mean(ways_m))

    few, many = 1, 1_000
    while True:
        drivers = (few + many) // 2
        nearest = simulate(drivers, "nearest")
        if abs(nearest[0] - share) < SHARE_TOLERANCE or many - few <= 1:
            break
        few, many = (drivers, many) if nearest[0] < share else (few, drivers)
    return {policy: nearest if policy == "nearest" else simulate(drivers, policy) for policy in policies}
