"""The city: drivers and customers in one process, apart from the server they talk to.

Its plan comes as the first line of standard input; what happens goes to standard output, a JSON object
a line, the last one with `outcome`. A second line of input, or its end, asks the city to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp
import orjson

from dispatcher.demo.calls import Caller, mint
from dispatcher.demo.car import Place, distance_m
from dispatcher.demo.customer_app import CustomerApp
from dispatcher.demo.driver_app import DEFAULT_HABITS, DriverApp, Habits
from dispatcher.demo.line import Frame
from dispatcher.demo.tally import Tally, TripStory

#: What a car makes in New York, as the crow flies, in metres a (simulated) second: 30 km/h.
_CAR_M_S: Final = 30 / 3.6
#: Of the trips that somebody is about to accept: how many are fought for, and by how many more.
_FOUGHT_FOR: Final = 0.3
_CROWD: Final = 4
_CROWD_M: Final = 10_000.0
#: Drop-offs are drawn among other pickups that make a ride of this length.
_RIDE_M: Final = (800.0, 10_000.0)
_DRAWS: Final = 20
_ARRIVE_PER_S: Final = 200.0
_REPORT_S: Final = 0.5
_ONLINE_S: Final = 30.0
#: Time for trips that have begun: the longest ride and a wait, or this much real time.
_DRAIN_SIMULATED_S: Final = 5_400.0
_DRAIN_S: Final = 25.0
_DRAIN_MOST_S: Final = 120.0
_TOKEN_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Plan:
    """What the city is made of. `pickups` are (seconds after the first, lat, lng)."""

    url: str
    server_pid: int
    secret: str
    audience: str
    issuer: str | None
    run: str
    pickups: list[tuple[float, float, float]]
    drivers: int
    speed: float
    minutes: float | None
    reach_m: float


class City:
    """Everybody in it, and its clock."""

    def __init__(
        self, plan: Plan, session: aiohttp.ClientSession, habits: Habits = DEFAULT_HABITS
    ) -> None:
        self._plan = plan
        self.speed = plan.speed
        self.habits = habits
        self.tally = Tally()
        self.rng = random.Random(plan.run)  # noqa: S311  no secrets here
        self.caller = Caller(session, plan.url, self.tally, self.rng)
        self.stopping = asyncio.Event()
        self._places: list[Place] = [(lat, lng) for _, lat, lng in plan.pickups]
        self.drivers: list[DriverApp] = []
        self._drivers: list[asyncio.Task[None]] = []
        self._customers: set[asyncio.Task[None]] = set()
        self._next = 0
        self._begun_at: float | None = None

    def _driver(self, number: int) -> DriverApp:
        driver_id = f"driver-{self._plan.run}-{number:04}"
        lat, lng = self.rng.choice(self._places)
        place = lat + self.rng.gauss(0, 0.004), lng + self.rng.gauss(0, 0.005)
        return DriverApp(self, driver_id, self._token(driver_id, "driver"), place, _CAR_M_S * self.speed)

    def _token(self, sub: str, role: str) -> str:
        plan = self._plan
        return mint(plan.secret, plan.audience, plan.issuer, sub, role, _TOKEN_S)

    def story(self, trip_id: str) -> TripStory:
        """The story of a trip: by its name without the zone, which the server puts before it."""
        return self.tally.trips.setdefault(trip_id.partition("_")[2], TripStory(time.monotonic()))

    def call_crowd(self, app: DriverApp, trip: Frame) -> None:
        """Lets some free drivers around try to get the trip at the same time."""
        if self.rng.random() >= _FOUGHT_FOR:
            return
        place = trip["pickup"]["lat"], trip["pickup"]["lng"]
        sample = self.rng.sample(self.drivers, min(len(self.drivers), 10 * _CROWD))
        near = [
            d for d in sample if d is not app and d.free and distance_m(d.car.place, place) < _CROWD_M
        ]
        self.tally.counts["trips fought for"] += bool(near)
        for driver in near[: self.rng.randint(1, _CROWD)]:
            driver.join(trip)

    async def run(self) -> None:
        """A replay from the first pickup to the last trip's end, or until it is stopped."""
        self.enlist(self._plan.drivers)
        reports = self._task(self._report())
        try:
            await self._until(self.all_online(), _ONLINE_S)
            if not any(driver.connected for driver in self.drivers):
                return
            minutes = self._plan.minutes
            self._begun_at = time.monotonic()
            await self._until(self._replay(), None if minutes is None else minutes * 60)
            drain_s = min(_DRAIN_MOST_S, _DRAIN_S + _DRAIN_SIMULATED_S / self.speed)
            await self._until(self._drained(), drain_s)
        finally:
            reports.cancel()
            await self.close()

    def enlist(self, amount: int) -> None:
        """That many more drivers, who come online one by one: no stampede of handshakes."""
        for place in range(amount):
            driver = self._driver(len(self.drivers))
            self.drivers.append(driver)
            self._drivers.append(self._task(self._start_driver(driver, place / _ARRIVE_PER_S)))

    async def close(self) -> None:
        """Everybody leaves. Raises the first error of the apps' own."""
        tasks = [*self._drivers, *self._customers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.caller.finish(5.0)
        if self.tally.bugs:
            raise self.tally.bugs[0]

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self.tally.ended)
        return task

    async def _start_driver(self, driver: DriverApp, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await driver.run()

    async def _until(self, work: Any, timeout_s: float | None) -> None:
        """Does the work, or as much as can be done until the city is stopped or time is up."""
        doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait((doing, stop), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing

    async def all_online(self) -> None:
        """Returns once nearly all drivers are connected."""
        while not all(driver.connected for driver in self.drivers):
            await asyncio.sleep(0.05)
            if sum(driver.connected for driver in self.drivers) >= 0.95 * len(self.drivers):
                return

    async def _replay(self) -> None:
        assert self._begun_at is not None
        for number, (after_s, lat, lng) in enumerate(self._plan.pickups):
            delay = self._begun_at + after_s / self.speed - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            self._next = number + 1
            self.ask(number, (lat, lng))

    def ask(self, number: int, pickup: Place) -> TripStory:
        """One more customer, who wants a trip now."""
        app = self._customer(number, pickup)
        task = self._task(app.run())
        self._customers.add(task)
        task.add_done_callback(self._customers.discard)
        return app.story

    def _customer(self, number: int, pickup: Place) -> CustomerApp:
        name = f"{self._plan.run}-{number:05}"
        story = self.tally.trips[name] = TripStory(time.monotonic())
        return CustomerApp(
            self.caller, self.tally, self.rng,
            token=self._token(f"customer-{name}", "customer"), story=story, trip_request_id=name,
            pickup=pickup, dropoff=self._dropoff(pickup),
        )  # fmt: skip

    def _dropoff(self, pickup: Place) -> Place:
        for _ in range(_DRAWS):
            place = self.rng.choice(self._places)
            if _RIDE_M[0] <= distance_m(pickup, place) <= _RIDE_M[1]:
                return place
        return place

    async def _drained(self) -> None:
        while self._customers:
            await asyncio.wait(self._customers)

    # --- telling

    async def _report(self) -> None:
        while True:
            self._look_for_reach()
            print_line(self.state())
            await asyncio.sleep(_REPORT_S)

    def _look_for_reach(self) -> None:
        waiting = [
            name
            for name, story in self.tally.trips.items()
            if story.status == "pending" and not story.reachable
        ]
        if not waiting:
            return
        free = [driver.car.place for driver in self.drivers if driver.free]
        for name in waiting:
            _, lat, lng = self._plan.pickups[int(name.rpartition("-")[2])]
            self.tally.trips[name].reachable = any(
                distance_m(place, (lat, lng)) <= self._plan.reach_m for place in free
            )

    def state(self) -> dict[str, Any]:
        """What the view shows."""
        begun = self._begun_at
        return self.tally.summary() | {
            "simulated_s": (time.monotonic() - begun) * self.speed if begun is not None else None,
            "replayed": self._next,
            "drivers": dict(Counter(driver.state for driver in self.drivers)),
        }


def print_line(what: dict[str, Any]) -> None:
    """One line to the parent process."""
    sys.stdout.buffer.write(orjson.dumps(what) + b"\n")
    sys.stdout.buffer.flush()


async def _heed(city: City, orders: asyncio.StreamReader, server_pid: int) -> None:
    """Stops the city on a word; on the end of input, whose writer was killed, the server as well."""
    if not await orders.readline():
        with contextlib.suppress(ProcessLookupError):
            os.kill(server_pid, signal.SIGTERM)
        os._exit(1)
    city.stopping.set()


async def main() -> None:
    """Reads the plan, and runs the city it is for."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    plan = Plan(**orjson.loads(await orders.readline()))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        city = City(plan, session)
        heeding = asyncio.create_task(_heed(city, orders, plan.server_pid))
        try:
            await city.run()
        finally:
            heeding.cancel()
        print_line(city.state() | {"outcome": city.tally.outcome()})


def plan_line(plan: Plan) -> bytes:
    """The first line of a city's input."""
    return orjson.dumps(asdict(plan)) + b"\n"
