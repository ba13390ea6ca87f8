"""The simulated city: its driver and customer apps, its clock, and who competes for which trip."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final

import aiohttp

from dispatcher.client import CustomerClient, HttpCalls, Trip
from dispatcher.demo.car import Position, distance_m
from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.customer_app import CustomerApp
from dispatcher.demo.driver_app import DriverApp
from dispatcher.demo.driver_habits import DEFAULT_HABITS, DriverHabits
from dispatcher.demo.requests import Requests, issue_token
from dispatcher.demo.stats import Stats, TripRecord

#: Speed of a car in New York in a straight line, in metres a simulated second: 30 km/h.
_CAR_M_S: Final = 30 / 3.6
#: Share of accepts that other drivers compete with; how many they are at most, and from how far.
_CONTESTED_SHARE: Final = 0.3
_MAX_RIVALS: Final = 4
_RIVAL_RADIUS_M: Final = 10_000.0
#: A drop-off is another pickup that makes a ride of this length, if one is found in so many draws.
_RIDE_LENGTH_M: Final = (800.0, 10_000.0)
_DROPOFF_DRAWS: Final = 20
#: New drivers connect at this rate, so that their handshakes do not overflow the listen backlog.
_CONNECTS_PER_S: Final = 200.0
#: The replay begins after this time even if some drivers are not connected.
_ONLINE_S: Final = 30.0
#: At the end, trips get the time of the longest ride and a wait, plus some real time, up to a maximum.
_DRAIN_SIMULATED_S: Final = 5_400.0
_DRAIN_S: Final = 25.0
_MAX_DRAIN_S: Final = 120.0
_TOKEN_S: Final = 86_400


class City:
    """All drivers and customers of one plan, and their shared clock, random numbers and statistics."""

    def __init__(
        self, plan: CityPlan, session: aiohttp.ClientSession, habits: DriverHabits = DEFAULT_HABITS
    ) -> None:
        self._plan = plan
        self.speed = plan.speed
        self.habits = habits
        self.stats = Stats()
        self.rng = random.Random(plan.run)  # noqa: S311  no secrets here
        self.requests = Requests(self.stats, self.rng)
        self._session = session
        self.stopping = asyncio.Event()
        self._pickups: list[Position] = [(lat, lng) for _, lat, lng in plan.pickups]
        self.drivers: list[DriverApp] = []
        self._driver_tasks: list[asyncio.Task[None]] = []
        self._customer_tasks: set[asyncio.Task[None]] = set()
        self._replayed = 0
        self._started_at: float | None = None
        self._phase = "day"

    def _new_driver(self, number: int) -> DriverApp:
        driver_id = f"driver-{self._plan.run}-{number:04}"
        lat, lng = self.rng.choice(self._pickups)
        position = lat + self.rng.gauss(0, 0.004), lng + self.rng.gauss(0, 0.005)
        http = HttpCalls(self._session, self._plan.url, self._token(driver_id, "driver"))
        return DriverApp(self, driver_id, http, position, _CAR_M_S * self.speed)

    def _token(self, sub: str, role: str) -> str:
        plan = self._plan
        return issue_token(plan.secret, plan.audience, plan.issuer, sub, role, _TOKEN_S)

    def record(self, trip_id: str) -> TripRecord:
        """The record of a trip. The server prefixes our name of a trip with its zone."""
        return self.stats.trips.setdefault(trip_id.partition("_")[2], TripRecord(time.monotonic()))

    def send_rivals(self, app: DriverApp, trip: Trip) -> None:
        """Now and then, lets some free drivers nearby try to accept the trip at the same time."""
        if self.rng.random() >= _CONTESTED_SHARE:
            return
        pickup = trip.pickup.lat, trip.pickup.lng
        sample = self.rng.sample(self.drivers, min(len(self.drivers), 10 * _MAX_RIVALS))
        near = [
            driver
            for driver in sample
            if driver is not app
            and driver.free
            and distance_m(driver.car.position, pickup) < _RIVAL_RADIUS_M
        ]
        self.stats.counts["trips fought for"] += bool(near)
        for driver in near[: self.rng.randint(1, _MAX_RIVALS)]:
            driver.compete_for(trip)

    async def run(self) -> None:
        """Replays all pickups and waits for the last trip to end, or until `stopping` is set."""
        self.add_drivers(self._plan.drivers)
        await self._run_until_stopped(self.wait_online(), _ONLINE_S)
        if not any(driver.connected for driver in self.drivers):
            return
        minutes = self._plan.minutes
        self._started_at = time.monotonic()
        await self._run_until_stopped(self._replay(), None if minutes is None else minutes * 60)
        self._phase = "tail"
        drain_s = min(_MAX_DRAIN_S, _DRAIN_S + _DRAIN_SIMULATED_S / self.speed)
        await self._run_until_stopped(self._customers_done(), drain_s)

    def add_drivers(self, amount: int) -> None:
        """Adds drivers, who connect one after the other."""
        for number in range(amount):
            driver = self._new_driver(len(self.drivers))
            self.drivers.append(driver)
            task = self._start_task(self._start_driver(driver, number / _CONNECTS_PER_S))
            self._driver_tasks.append(task)

    async def close(self) -> None:
        """Ends all apps. Raises the first error of the apps themselves."""
        tasks = [*self._driver_tasks, *self._customer_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.requests.finish(5.0)
        if self.stats.app_errors:
            raise self.stats.app_errors[0]

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self.stats.keep_error)
        return task

    async def _start_driver(self, driver: DriverApp, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await driver.run()

    async def _run_until_stopped(self, work: Any, timeout_s: float | None) -> None:
        """Does the work, and cancels it when the city is stopped or the time is up."""
        doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait((doing, stop), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing

    async def wait_online(self) -> None:
        """Returns once nearly all drivers are connected."""
        while not all(driver.connected for driver in self.drivers):
            await asyncio.sleep(0.05)
            if sum(driver.connected for driver in self.drivers) >= 0.95 * len(self.drivers):
                return

    async def _replay(self) -> None:
        assert self._started_at is not None
        for number, (after_s, lat, lng) in enumerate(self._plan.pickups):
            delay = self._started_at + after_s / self.speed - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            self._replayed = number + 1
            self.add_customer(number, (lat, lng))

    def add_customer(self, number: int, pickup: Position) -> TripRecord:
        """Adds a customer who asks for a trip now; `number` is the place of the pickup in the plan."""
        app = self._new_customer(number, pickup)
        task = self._start_task(app.run())
        self._customer_tasks.add(task)
        task.add_done_callback(self._customer_tasks.discard)
        return app.record

    def _new_customer(self, number: int, pickup: Position) -> CustomerApp:
        name = f"{self._plan.run}-{number:05}"
        record = self.stats.trips[name] = TripRecord(time.monotonic())
        token = self._token(f"customer-{name}", "customer")
        return CustomerApp(
            CustomerClient(self._plan.url, token, session=self._session),
            self.requests, self.stats, self.rng,
            record=record, trip_request_id=name, pickup=pickup, dropoff=self._dropoff(pickup),
        )  # fmt: skip

    def _dropoff(self, pickup: Position) -> Position:
        for _ in range(_DROPOFF_DRAWS):
            dropoff = self.rng.choice(self._pickups)
            if _RIDE_LENGTH_M[0] <= distance_m(pickup, dropoff) <= _RIDE_LENGTH_M[1]:
                break
        return dropoff

    async def _customers_done(self) -> None:
        while self._customer_tasks:
            await asyncio.wait(self._customer_tasks)

    def mark_reachable(self) -> None:
        """Marks the pending trips that a free driver could be offered now."""
        waiting = [
            name
            for name, record in self.stats.trips.items()
            if record.status == "pending" and not record.reachable
        ]
        if not waiting:
            return
        free = [driver.car.position for driver in self.drivers if driver.free]
        for name in waiting:
            _, lat, lng = self._plan.pickups[int(name.rpartition("-")[2])]
            self.stats.trips[name].reachable = any(
                distance_m(position, (lat, lng)) <= self._plan.max_radius_m for position in free
            )

    def state(self) -> dict[str, Any]:
        """The state that the view shows."""
        started = self._started_at
        return self.stats.summary() | {
            "simulated_s": (time.monotonic() - started) * self.speed if started is not None else None,
            "phase": self._phase,
            "replayed": self._replayed,
            "drivers": dict(Counter(driver.state for driver in self.drivers)),
        }
