"""The demo's city as a load: its driver and customer apps, with customers at a given rate."""

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
from dispatcher.demo.car import Place, distance_m
from dispatcher.demo.city import City, Plan
from dispatcher.demo.driver_app import Habits
from dispatcher.demo.tally import TripStory

# Drivers here take what they are offered, at once: what is left of the time to assignment is the
# dispatcher's. Whoever would ponder, decline or ignore is the demo's matter.
EAGER = Habits(accepts=1.0, declines=0.0, thinks_s=(0.0, 0.0))
TICK_S = 0.005
SAMPLE_S = 0.1
# What the apps time by themselves, in the order in which it happens to a trip.
PARTS = ("create", "creation to offer", "accept", "accept to customer")
# Codes of the apps' side beside the server's refusals.
APPS_OWN = ("unanswered", "connections failed", "closed with", "error frame", "steps refused")


@dataclass(slots=True)
class CitySample:
    """What customers saw of the trips that they asked for in one measured time. Times in s."""

    asked: int = 0
    elapsed_s: float = 0.0
    assigned: int = 0  # of those asked for
    assignments: int = 0  # made during the measured time, whenever the trip was asked for
    #: To assignment; of a trip that was not assigned, how long its customer waited in vain.
    waits: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    frames: int = 0  # positions and heartbeats
    requests: int = 0
    drivers: int = 0
    #: Fewest drivers that were free at any moment.
    free: int = 0
    lags: list[float] = field(default_factory=list)


class Lag:
    """How late this process' event loop is: an app that is called late times the app, not the server."""

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


def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As ever, but not of handshakes that were under way when a city's people left."""
    if not context["message"].startswith("Unclosed"):
        loop.default_exception_handler(context)


class CityLoad:
    """One city for a whole script: drivers are added as the load rises, and live on between steps."""

    async def open(self, plan: Plan) -> None:
        asyncio.get_running_loop().set_exception_handler(complain)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self.plan = plan
        self.city = City(plan, self.session, EAGER)
        self.asked = 0
        self.pickups = cycle(plan.pickups)

    async def populate(self, drivers: int, patience_s: float) -> None:
        """More drivers, until there are that many and nearly all of them are connected."""
        # The collector is off while a load runs; what the last one left is picked up here.
        gc.collect()
        self.city.enlist(drivers - len(self.city.drivers))
        await asyncio.wait_for(self.city.all_online(), patience_s)

    async def settle(self, patience_s: float, *, empty: bool = False) -> None:
        """Waits until nobody waits for a driver any more; `empty`: until every trip is over."""
        unsettled = {"requested", "pending", *(ACTIVE if empty else ())}
        deadline = time.monotonic() + patience_s
        stories = self.city.tally.trips
        while time.monotonic() < deadline:
            if not any(story.status in unsettled for story in stories.values()):
                return
            await asyncio.sleep(0.1)

    async def measure(self, rate: float, warm_s: float, seconds: float, patience_s: float) -> CitySample:
        """Customers at random times, `rate` a second on average, whatever the server does.

        Only those who come after `warm_s` count, and they are waited for up to `patience_s`.
        """
        sample = CitySample()
        await self._ask(rate, warm_s)
        tally = self.city.tally
        before = Counter(tally.counts)
        tally.latencies.clear()
        lag, started = Lag(), time.monotonic()
        watching = asyncio.create_task(self._watch_free(sample))
        stories = await self._ask(rate, seconds)
        ended = time.monotonic()
        sample.elapsed_s = ended - started
        sample.lags = lag.stop()
        watching.cancel()
        sample.parts = {part: [*tally.latencies.get(part, [])] for part in PARTS}
        happened = Counter(tally.counts) - before
        sample.codes = {
            name.removeprefix("answer "): amount
            for name, amount in sorted(happened.items())
            if name.removeprefix("answer ") in PROBLEMS or name.startswith(APPS_OWN)
        }
        sample.requests = happened["requests"]
        sample.frames = happened["location frames"] + happened["heartbeat frames"]
        sample.drivers = len(self.city.drivers)
        sample.assignments = sum(
            started <= (story.assigned_at or 0.0) < ended for story in tally.trips.values()
        )
        sample.asked = len(stories)
        await self._decided(stories, patience_s)
        now = time.monotonic()
        for story in stories:
            sample.assigned += story.assigned_at is not None
            sample.waits.append((story.assigned_at or now) - story.requested_at)
        # Of the very trips that were measured: those of an overloaded server are offered late.
        sample.parts["creation to offer"] = [
            story.offered_at - story.requested_at for story in stories if story.offered_at is not None
        ]
        return sample

    async def _ask(self, rate: float, seconds: float) -> list[TripStory]:
        """As many as belong into the time, at times that know nothing of each other."""
        city, stories, begun = self.city, [], time.monotonic()
        for after_s in sorted(city.rng.uniform(0, seconds) for _ in range(round(rate * seconds))):
            if (delay := begun + after_s - time.monotonic()) > 0:
                await asyncio.sleep(delay)
            stories.append(city.ask(self.asked, self._pickup()))
            self.asked += 1
        await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
        return stories

    def _pickup(self) -> Place:
        """The next one that a free driver is in reach of: the real ones have far outliers."""
        for _ in self.plan.pickups:
            _, lat, lng = next(self.pickups)
            place = lat, lng
            if any(
                driver.free and distance_m(driver.car.place, place) < self.plan.reach_m
                for driver in self.city.drivers
            ):
                break
        return place

    async def _decided(self, stories: Iterable[TripStory], patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(story.assigned_at is None for story in stories):
            await asyncio.sleep(0.02)

    async def _watch_free(self, sample: CitySample) -> None:
        sample.free = len(self.city.drivers)
        while True:
            sample.free = min(sample.free, sum(driver.free for driver in self.city.drivers))
            await asyncio.sleep(SAMPLE_S)

    async def close(self) -> tuple[list[tuple[str, int]], list[str]]:
        """The answers that Postgres must know of, and the replays that differed."""
        await self.city.close()
        await self.session.close()
        return self.city.tally.answered, self.city.tally.mismatches
