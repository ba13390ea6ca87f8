"""A driver's phone: a connection that breaks and returns, position reports, requests with keys."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from dispatcher.client import CONNECTION_ERRORS, Event, HttpCalls, NoAnswer, Reply, Socket, Welcome
from dispatcher.client.driver import Action, action_intent, availability_intent
from dispatcher.client.events import read_event
from dispatcher.client.replies import Intent
from dispatcher.demo.car import Car
from dispatcher.demo.requests import Requests
from dispatcher.demo.stats import Stats

#: In real seconds, since these test the server: how long a connection lasts on average, how long the
#: phone is then away, and how long with an empty battery, which outlasts presence and its grace.
_MEAN_CONNECTION_S: Final = 60.0
_AWAY_S: Final = (0.3, 3.0)
_BATTERY_EMPTY_S: Final = 25.0
#: Share of lost connections that are due to an empty battery.
_BATTERY_EMPTY_SHARE: Final = 0.04
#: A moving car reports its position this often, in real seconds.
_MOVING_REPORT_S: Final = 1.0
#: A standing car reports its position with every third heartbeat.
_HEARTBEATS_PER_POSITION: Final = 3


class DriverPhone:
    """Hands what it hears to `on_event`. Its tasks end with `run`."""

    def __init__(
        self,
        http: HttpCalls,
        requests: Requests,
        stats: Stats,
        rng: random.Random,
        car: Car,
        on_event: Callable[[Event], None],
    ) -> None:
        self._http = http
        self._requests = requests
        self._stats = stats
        self._counts = stats.counts
        self._rng = rng
        self._car = car
        self._on_event = on_event
        self._socket: Socket | None = None
        self._network = asyncio.Event()
        self._registered = False
        self._heartbeat_s = 5.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether the server can reach the phone."""
        return self._socket is not None

    async def run(self) -> None:
        """Connects again and again until it is cancelled."""
        self.spawn(self._send_positions())
        try:
            while True:
                away_s = self._rng.uniform(*_AWAY_S)
                try:
                    away_s = await self._connection()
                except (*CONNECTION_ERRORS, NoAnswer):
                    self._counts["connections failed"] += 1
                await asyncio.sleep(away_s)
        finally:
            for task in [*self._tasks]:
                task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs work in a task; counts a request that stays unanswered."""
        task = asyncio.create_task(self._count_unanswered(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it began
        task.add_done_callback(self._stats.keep_error)
        return task

    async def _count_unanswered(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NoAnswer:
            self._counts["unanswered for good"] += 1

    async def _connection(self) -> float:
        """Lives through one connection; returns how long (s) the phone is away afterwards."""
        self._network.set()
        if not self._registered:
            await self.set_availability(is_online=True, availability_status="available")
        socket = self._socket = await Socket.open(self._http)
        self._counts["connections"] += 1
        battery_empty = self._rng.random() < _BATTERY_EMPTY_SHARE
        duration_s = 1.0 + self._rng.expovariate(1 / _MEAN_CONNECTION_S)
        timer = asyncio.get_running_loop().call_later(
            duration_s, self._lose_connection, socket, battery_empty
        )
        try:
            async for frame in socket.frames():
                event = read_event(frame)
                if isinstance(event, Welcome):
                    self._heartbeat_s = event.heartbeat_s
                if event is not None:
                    self._on_event(event)
        finally:
            timer.cancel()
            self._socket = None
        if self._network.is_set():
            self._counts[f"closed with {socket.close_code}"] += 1
            return self._rng.uniform(*_AWAY_S)
        self._counts["drops"] += 1
        self._counts["batteries empty"] += battery_empty
        return _BATTERY_EMPTY_S if battery_empty else self._rng.uniform(*_AWAY_S)

    def _lose_connection(self, socket: Socket, battery_empty: bool) -> None:
        self._network.clear()
        if battery_empty or self._rng.random() < 0.5:
            socket.abort()
        else:
            self.spawn(socket.close())

    def reconnect(self) -> None:
        """Drops the connection: the snapshot of the next one tells the driver's state."""
        if self._socket is not None:
            self._socket.abort()

    async def _send_positions(self) -> None:
        reports = 0
        while True:
            await asyncio.sleep(_MOVING_REPORT_S if self._car.moving else self._heartbeat_s)
            reports += 1
            is_due = self._car.moving or reports % _HEARTBEATS_PER_POSITION == 0
            if self._socket is None or not is_due:
                continue
            lat, lng = self._car.position
            self._counts["location frames"] += 1
            with contextlib.suppress(*CONNECTION_ERRORS):
                await self._socket.send({"type": "location", "lat": lat, "lng": lng})

    async def trip_action(
        self, action: Action, trip_id: str, *, version: int | None = None, over_http: bool = False
    ) -> Reply:
        """Sends an action on a trip, over the WebSocket if there is one. Raises NoAnswer."""
        intent = action_intent(action, trip_id, version=version)
        return await self._send(action, intent, over_http=over_http)

    async def _send(self, name: str, intent: Intent, *, over_http: bool = False) -> Reply:
        async def by_http() -> Reply:
            self._require_network()
            return await self._http.send(intent)

        async def by_socket() -> Reply:
            self._require_network()
            if self._socket is None:
                return await by_http()
            return await self._socket.ask(intent)

        await self._network.wait()
        resend = self._rng.choice((by_http, by_socket))
        return await self._requests.request(name, by_http if over_http else by_socket, resend)

    async def set_availability(self, **change: Any) -> None:
        """Tells the server of a change of availability. Raises NoAnswer."""
        intent = availability_intent(**change, location=self._car.position)
        reply = await self._send("availability", intent)
        self._registered = self._registered or reply.ok

    def _require_network(self) -> None:
        if not self._network.is_set():
            raise ConnectionError("no network")
