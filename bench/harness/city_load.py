"""The demo's city as a load: its driver and customer apps, and customers at a given rate."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import aiohttp

from dispatcher.core.errors import PROBLEMS
from dispatcher.core.trips import ACTIVE
from dispatcher.demo.car import Position, distance_m
from dispatcher.demo.city import City
from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.driver_habits import DriverHabits
from dispatcher.demo.stats import TripRecord

# Drivers accept every offer at once, so that the time to assignment is the dispatcher's alone.
ALWAYS_ACCEPT = DriverHabits(accepts=1.0, declines=0.0, think_time_s=(0.0, 0.0))
TICK_S = 0.005
SAMPLE_S = 0.1
# Latencies that the apps measure, in the order in which they happen to a trip.
PARTS = ("create", "creation to offer", "accept", "accept to customer")
# Counters of the apps that are reported beside the server's refusals.
APP_CODES = ("unanswered", "connections failed", "closed with", "error frame", "steps refused")


@dataclass(slots=True)
class CitySample:
    """What customers saw of the trips that they asked for during one measured run. Times in seconds."""

    asked: int = 0
    elapsed_s: float = 0.0
    assigned: int = 0  # of those asked for
    assignments: int = 0  # made during the measured time, whenever the trip was asked for
    #: Until assignment; for a trip that was not assigned, how long its customer waited.
    waits: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    frames: int = 0  # positions and heartbeats
    requests: int = 0
    drivers: int = 0
    #: The smallest number of free drivers at any moment.
    free: int = 0
    lags: list[float] = field(default_factory=list)


class LoopLag:
    """How late this process' event loop is: an app that runs late measures itself, not the server."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self.samples.append(max(0.0, time.monotonic() - due))

    def stop(self) -> list[float]:
        self._task.cancel()
        return self.samples


def handle_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The default handler, but silent about handshakes that were under way when a city was closed."""
    if not context["message"].startswith("Unclosed"):
        loop.default_exception_handler(context)


class CityLoad:
    """A city that lasts over several steps; drivers are added as the load rises."""

    async def open(self, plan: CityPlan) -> None:
        asyncio.get_running_loop().set_exception_handler(handle_loop_error)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self.plan = plan
        self.city = City(plan, self.session, ALWAYS_ACCEPT)
        self.asked = 0
        self.pickups = cycle(plan.pickups)

    async def populate(self, drivers: int, timeout_s: float) -> None:
        """Adds drivers up to that number, and waits until nearly all of them are connected."""
        # Automatic garbage collection is off in a load process.
        gc.collect()
        self.city.add_drivers(drivers - len(self.city.drivers))
        await asyncio.wait_for(self.city.wait_online(), timeout_s)

    async def settle(self, timeout_s: float, *, empty: bool = False) -> None:
        """Waits until nobody waits for a driver any more; `empty`: until every trip is over."""
        unsettled = {"requested", "pending", *(ACTIVE if empty else ())}
        deadline = time.monotonic() + timeout_s
        records = self.city.stats.trips
        while time.monotonic() < deadline:
            if not any(record.status in unsettled for record in records.values()):
                return
            await asyncio.sleep(0.1)

    async def measure(self, rate: float, warm_s: float, seconds: float, timeout_s: float) -> CitySample:
        """Customers at random times, `rate` a second on average, whatever the server does.

        Only customers who come after `warm_s` count; the run waits for their drivers up to `timeout_s`.
        """
        sample = CitySample()
        await self._add_customers(rate, warm_s)
        stats = self.city.stats
        before = Counter(stats.counts)
        stats.latencies.clear()
        lag, started = LoopLag(), time.monotonic()
        watching = asyncio.create_task(self._watch_free(sample))
        records = await self._add_customers(rate, seconds)
        ended = time.monotonic()
        sample.elapsed_s = ended - started
        sample.lags = lag.stop()
        watching.cancel()
        sample.parts = {part: [*stats.latencies.get(part, [])] for part in PARTS}
        happened = Counter(stats.counts) - before
        sample.codes = {
            name.removeprefix("answer "): amount
            for name, amount in sorted(happened.items())
            if name.removeprefix("answer ") in PROBLEMS or name.startswith(APP_CODES)
        }
        sample.requests = happened["requests"]
        sample.frames = happened["location frames"]
        sample.drivers = len(self.city.drivers)
        sample.assignments = sum(
            started <= (record.assigned_at or 0.0) < ended for record in stats.trips.values()
        )
        sample.asked = len(records)
        await self._wait_assigned(records, timeout_s)
        now = time.monotonic()
        for record in records:
            sample.assigned += record.assigned_at is not None
            sample.waits.append((record.assigned_at or now) - record.requested_at)
        # Only of the measured trips: an overloaded server also offers earlier ones during this run.
        sample.parts["creation to offer"] = [
            record.offered_at - record.requested_at
            for record in records
            if record.offered_at is not None
        ]
        return sample

    async def _add_customers(self, rate: float, seconds: float) -> list[TripRecord]:
        """Adds `rate * seconds` customers at independent, uniformly random times."""
        city, records, started = self.city, [], time.monotonic()
        for after_s in sorted(city.rng.uniform(0, seconds) for _ in range(round(rate * seconds))):
            if (delay := started + after_s - time.monotonic()) > 0:
                await asyncio.sleep(delay)
            records.append(city.add_customer(self.asked, self._pickup()))
            self.asked += 1
        await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
        return records

    def _pickup(self) -> Position:
        """The next pickup within reach of a free driver: some of the real ones are far outside."""
        for _ in self.plan.pickups:
            _, lat, lng = next(self.pickups)
            pickup = lat, lng
            if any(
                driver.free and distance_m(driver.car.position, pickup) < self.plan.max_radius_m
                for driver in self.city.drivers
            ):
                break
        return pickup

    async def _wait_assigned(self, records: Iterable[TripRecord], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and any(record.assigned_at is None for record in records):
            await asyncio.sleep(0.02)

    async def _watch_free(self, sample: CitySample) -> None:
        sample.free = len(self.city.drivers)
        while True:
            sample.free = min(sample.free, sum(driver.free for driver in self.city.drivers))
            await asyncio.sleep(SAMPLE_S)

    async def close(self) -> tuple[list[tuple[str, int]], list[str]]:
        """The successes that Postgres must hold, and the replays that differed."""
        await self.city.close()
        await self.session.close()
        return self.city.stats.answered, self.city.stats.mismatches


class ScarceCityLoad(CityLoad):
    """A city whose customers ask wherever they are, whether a driver is free near them or not."""

    def _pickup(self) -> Position:
        _, lat, lng = next(self.pickups)
        return lat, lng
