"""A driver's phone: a connection that breaks and comes back, positions, and requests with keys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from dispatcher.demo.calls import LOST, Caller, Reply, Unanswered, new_key
from dispatcher.demo.car import Car
from dispatcher.demo.line import Frame, Line
from dispatcher.demo.tally import Tally

#: Real seconds, for they try the server: how long a connection lasts, how long the phone is without
#: one, and how long where its battery is empty, which is beyond presence and grace.
_CONNECTED_S: Final = 60.0
_AWAY_S: Final = (0.3, 3.0)
_EMPTY_S: Final = 25.0
_EMPTIES: Final = 0.04
#: A moving car says where it is this often (real seconds, as apps do).
_BEAT_S: Final = 1.0
#: One who stands says so with every third sign of life.
_STANDING: Final = 3
_ACTION_PATH: Final = "/api/driver/ride/trip-action"
_AVAILABILITY_PATH: Final = "/api/driver/availability"


class Phone:
    """Hands what it hears to `hear`. Its tasks end with `run`."""

    def __init__(
        self,
        caller: Caller,
        tally: Tally,
        rng: random.Random,
        token: str,
        car: Car,
        hear: Callable[[Frame], None],
    ) -> None:
        self._caller = caller
        self._tally = tally
        self._counts = tally.counts
        self._rng = rng
        self._token = token
        self._car = car
        self._hear = hear
        self._line: Line | None = None
        self._signal = asyncio.Event()
        self._online = False
        self._heartbeat_s = 5.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether the server can reach it."""
        return self._line is not None

    async def run(self) -> None:
        """Lives until it is cancelled."""
        self.spawn(self._beat())
        try:
            while True:
                away_s = self._rng.uniform(*_AWAY_S)
                try:
                    away_s = await self._connection()
                except (*LOST, Unanswered):
                    self._counts["connections failed"] += 1
                await asyncio.sleep(away_s)
        finally:
            for task in [*self._tasks]:
                task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs something beside; what stays unanswered is counted."""
        task = asyncio.create_task(self._counted(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began
        task.add_done_callback(self._tally.ended)
        return task

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Unanswered:
            self._counts["unanswered for good"] += 1

    async def _connection(self) -> float:
        """One connection from beginning to end; returns how long the phone is away afterwards."""
        self._signal.set()
        if not self._online:
            await self.set_availability(is_online=True, availability_status="available")
        line = self._line = await Line.open(self._caller, self._token)
        self._counts["connections"] += 1
        empties = self._rng.random() < _EMPTIES
        lasts_s = 1.0 + self._rng.expovariate(1 / _CONNECTED_S)
        end = asyncio.get_running_loop().call_later(lasts_s, self._drop, line, empties)
        try:
            async for frame in line.frames():
                if frame["type"] == "welcome":
                    self._heartbeat_s = float(frame["heartbeat_s"])
                self._hear(frame)
        finally:
            end.cancel()
            self._line = None
        if self._signal.is_set():
            self._counts[f"closed with {line.close_code}"] += 1
            return self._rng.uniform(*_AWAY_S)
        self._counts["drops"] += 1
        self._counts["batteries empty"] += empties
        return _EMPTY_S if empties else self._rng.uniform(*_AWAY_S)

    def _drop(self, line: Line, empties: bool) -> None:
        self._signal.clear()
        if empties or self._rng.random() < 0.5:
            line.cut()
        else:
            self.spawn(line.close())

    def reconnect(self) -> None:
        """What the server's snapshot says is needed."""
        if self._line is not None:
            self._line.cut()

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_S if self._car.moving else self._heartbeat_s)
            beats += 1
            if self._line is None:
                continue
            lat, lng = self._car.place
            frame: Frame = {"type": "heartbeat"}
            if self._car.moving or beats % _STANDING == 0:
                frame = {"type": "location", "lat": lat, "lng": lng}
            self._counts[frame["type"] + " frames"] += 1
            try:
                await self._line.tell(frame)
            except LOST:
                continue

    async def act(
        self, action: str, trip_id: str, *, version: int | None = None, over_http: bool = False
    ) -> Reply:
        """Asks for a step with a trip, over the socket if there is one. Raises Unanswered."""
        key = new_key()
        what: Frame = {"action": action, "trip_request_id": trip_id}
        if version is not None:
            what["version"] = version

        async def by_http() -> Reply:
            self._need_signal()
            return await self._caller.post(self._token, _ACTION_PATH, what, key)

        async def by_socket() -> Reply:
            self._need_signal()
            if self._line is None:
                return await by_http()
            return await self._line.ask({"type": "trip_action", "idempotency_key": key, **what})

        await self._signal.wait()
        again = self._rng.choice((by_http, by_socket))
        return await self._caller.ask(action, by_http if over_http else by_socket, again)

    async def set_availability(self, **what: Any) -> None:
        """Goes online, has a break, is available again. Raises Unanswered."""
        lat, lng = self._car.place
        body = {**what, "location": {"lat": lat, "lng": lng}}
        key = new_key()

        async def send() -> Reply:
            self._need_signal()
            return await self._caller.post(self._token, _AVAILABILITY_PATH, body, key)

        await self._signal.wait()
        reply = await self._caller.ask("availability", send)
        self._online = self._online or reply.ok

    def _need_signal(self) -> None:
        if not self._signal.is_set():
            raise ConnectionError("no signal")
