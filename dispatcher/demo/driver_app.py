"""A driver with their app: takes, declines and ignores offers, drives, loses the connection, comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from dispatcher.core.model import ACTIVE
from dispatcher.demo.calls import LOST, Caller, Reply, Unanswered, new_key
from dispatcher.demo.car import Car, Place
from dispatcher.demo.line import Frame, Line
from dispatcher.demo.tally import Tally, TripStory

#: Of all offers; the rest is ignored until its deadline.
_ACCEPTS: Final = 0.80
_DECLINES: Final = 0.12
#: Simulated seconds: to look at an offer, to get in, to have a break.
_THINKS_S: Final = (2.0, 8.0)
_BOARDS_S: Final = 60.0
_BREAK_S: Final = 600.0
#: Of accepted trips: the driver gives it back at the pickup. Of completed ones: a break follows.
_GIVES_BACK: Final = 0.015
_PAUSES: Final = 0.04
#: Real seconds, for they try the server: how long a connection lasts, how long a driver is away, and
#: how long one is away whose phone is dead, which is beyond presence and grace.
_CONNECTED_S: Final = 60.0
_AWAY_S: Final = (0.3, 3.0)
_DEAD_S: Final = 25.0
_DIES: Final = 0.04
#: A moving car says where it is this often (real seconds, as apps do).
_BEAT_S: Final = 1.0
#: Frames and answers about one change may arrive in either order within this time.
_ORDER_S: Final = 2.0
_ACTION_PATH: Final = "/api/driver/ride/trip-action"


class Town(Protocol):
    """What a driver's app needs of the city."""

    caller: Caller
    tally: Tally
    rng: random.Random
    speed: float

    def story(self, trip_id: str) -> TripStory:
        """The story of a trip."""

    def call_crowd(self, app: DriverApp, trip: Frame) -> None:
        """An app is about to accept: others may try, too."""


class Refused(Exception):
    """The server sees the trip otherwise; its snapshot will tell."""


class DriverApp:
    """One driver. The server's word counts: what the app holds is what it was told last."""

    def __init__(self, town: Town, driver_id: str, token: str, place: Place, speed_m_s: float) -> None:
        self.id = driver_id
        self.car = Car(place, speed_m_s)
        self.trip: Frame | None = None
        self.line: Line | None = None
        self._town = town
        self._token = token
        self._signal = asyncio.Event()
        self._online = False
        self._pausing = False
        self._accepting = 0
        self._finishing = False
        self._held_since = 0.0
        self._heartbeat_s = 5.0
        self._offers: set[str] = set()
        self._known: dict[str, int] = {}
        self._errand: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def free(self) -> bool:
        """Connected, with nothing to do: whom a trip may be offered to."""
        return self.line is not None and self.trip is None and not self._pausing and not self._accepting

    @property
    def state(self) -> str:
        """For the view."""
        if self.line is None:
            return "away"
        if self.trip is not None:
            return "riding" if self.trip["current_status"] == "ongoing" else "to pickup"
        return "on a break" if self._pausing else "free"

    async def run(self) -> None:
        """Lives until it is cancelled."""
        self._spawn(self._beat())
        try:
            while True:
                away_s = self._town.rng.uniform(*_AWAY_S)
                try:
                    away_s = await self._connection()
                except (*LOST, Unanswered):
                    self._town.tally.counts["connections lost"] += 1
                self.line = None
                self._offers.clear()
                await asyncio.sleep(away_s)
        finally:
            for task in [*self._tasks]:
                task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the connection

    async def _connection(self) -> float:
        """One connection from beginning to end; returns how long the driver is away afterwards."""
        rng, counts = self._town.rng, self._town.tally.counts
        self._signal.set()
        if not self._online:
            await self._set_availability(is_online=True, availability_status="available")
        line = await Line.open(self._town.caller, self._token)
        counts["connections"] += 1
        self.line = line
        dies = rng.random() < _DIES
        ends = asyncio.get_running_loop().call_later(
            rng.expovariate(1 / _CONNECTED_S) + 1.0, self._drop, line, dies
        )
        try:
            async for frame in line.frames():
                self._hear(frame)
        finally:
            ends.cancel()
            self.line = None
        if self._signal.is_set():
            counts[f"closed with {line.close_code}"] += 1
            return rng.uniform(*_AWAY_S)
        counts["drops"] += 1
        counts["phones dead"] += dies
        return _DEAD_S if dies else rng.uniform(*_AWAY_S)

    def _drop(self, line: Line, dies: bool) -> None:
        self._signal.clear()
        if dies or self._town.rng.random() < 0.5:
            line.cut()
        else:
            self._spawn(line.close())

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_S if self.car.moving else self._heartbeat_s)
            beats += 1
            if self.line is None:
                continue
            lat, lng = self.car.place
            heard = self.car.moving or beats % 3 == 0
            frame = {"type": "location", "lat": lat, "lng": lng} if heard else {"type": "heartbeat"}
            try:
                await self.line.tell(frame)
                self._town.tally.counts[f"{frame['type']} frames"] += 1
            except LOST:
                continue

    def _hear(self, frame: Frame) -> None:
        match frame["type"]:
            case "welcome":
                self._heartbeat_s = float(frame["heartbeat_s"])
                self._compare(frame["snapshot"])
            case "offer":
                self._consider(frame["trip"], frame["wave"])
            case "offer_withdrawn":
                self._offers.discard(frame["trip_request_id"])
            case "trip":
                self._learn(frame["trip"])
            case "error":
                self._town.tally.counts[f"error frame {frame['response_code']}"] += 1

    def _compare(self, snapshot: Frame) -> None:
        driver, trip = snapshot["driver"], snapshot["trip"]
        if driver is None or not driver["is_online"]:
            self._town.tally.counts["drivers lost"] += 1
            self._spawn(self._quietly(self._come_back()))
        if trip is not None:
            self._learn(trip)
        elif self.trip is not None and time.monotonic() - self._held_since > _ORDER_S:
            self._let_go()
        for offer in snapshot["offers"]:
            self._consider(offer["trip"], None)

    # --- offers

    def _consider(self, trip: Frame, wave: int | None) -> None:
        rng, story, counts = self._town.rng, self._town.story(trip["id"]), self._town.tally.counts
        counts["offers"] += 1
        if story.offered_at is None:
            story.offered_at = time.monotonic()
            self._town.tally.took("creation to offer", story.offered_at - story.requested_at)
        if story.assigned_at is None:
            story.wave = max(story.wave, wave or 0)
        self._offers.add(trip["id"])
        draw = rng.random()
        if not self.free or draw >= _ACCEPTS + _DECLINES:
            counts["offers ignored"] += 1
        else:
            self._spawn(self._quietly(self._decide(trip, draw < _ACCEPTS)))

    async def _decide(self, trip: Frame, accepts: bool) -> None:
        await asyncio.sleep(self._town.rng.uniform(*_THINKS_S) / self._town.speed)
        if trip["id"] not in self._offers or not self.free:
            return
        if accepts:
            self._town.call_crowd(self, trip)
            await self.take(trip)
        else:
            self._town.tally.counts["declines"] += 1
            await self._act("decline", trip["id"])

    async def take(self, trip: Frame, *, over_http: bool = False) -> None:
        """Tries to get the trip. Raises Unanswered."""
        tally = self._town.tally
        self._accepting += 1
        self._town.story(trip["id"]).accept_sent_at[self.id] = time.monotonic()
        tally.counts["accepts"] += 1
        try:
            reply = await self._act("accept", trip["id"], over_http=over_http)
        finally:
            self._accepting -= 1
        if reply.ok:
            tally.accepted()
            self._learn(reply.body["trip"])
        else:
            tally.counts["refused"] += 1

    # --- the trip

    def _learn(self, trip: Frame) -> None:
        """The server's word on a trip; older ones are ignored."""
        trip_id, version = trip["id"], trip["version"]
        if version < self._known.get(trip_id, -1):
            return
        self._known[trip_id] = version
        holds = self.trip is not None and self.trip["id"] == trip_id
        if trip["driver_id"] == self.id and trip["current_status"] in ACTIVE:
            if holds:
                self.trip = trip
            elif self.trip is None:
                self.trip, self._held_since = trip, time.monotonic()
                self._errand = self._spawn(self._quietly(self._serve(trip)))
            elif self.line is not None:
                self.line.cut()  # two at once cannot be: the snapshot tells which
        elif holds:
            self._let_go()

    def _let_go(self) -> None:
        self.trip = None
        # Whoever ends the trip by their own action still waits for its answer.
        if self._errand is not None and not self._finishing:
            self._town.tally.counts["trips taken away"] += 1
            self._errand.cancel()
            self.car.stop()

    async def _serve(self, trip: Frame) -> None:
        rng, speed = self._town.rng, self._town.speed
        status = trip["current_status"]
        try:
            if status == "accepted":
                await asyncio.sleep(self.car.head_for(_place(trip["pickup"])))
                if rng.random() < _GIVES_BACK:
                    return await self._step("cancel")
                await self._step("arrive")
            if status in ("accepted", "arrived"):
                await asyncio.sleep(_BOARDS_S / speed)
                await self._step("start")
            await asyncio.sleep(self.car.head_for(_place(trip["dropoff"] or trip["pickup"])))
            await self._step("complete")
        except Refused:
            self._town.tally.counts["steps refused"] += 1
            self.trip = None
            if self.line is not None:
                self.line.cut()
        if rng.random() < _PAUSES:
            await self._pause()
        return None

    async def _step(self, action: str) -> None:
        assert self.trip is not None
        self._finishing = action in ("complete", "cancel")
        try:
            reply = await self._act(action, self.trip["id"], version=self.trip["version"])
            if not reply.ok:
                raise Refused(reply.code)
            self._learn(reply.body["trip"])
        finally:
            self._finishing = False

    # --- asking

    async def _act(
        self, action: str, trip_id: str, *, version: int | None = None, over_http: bool = False
    ) -> Reply:
        key = new_key()
        what: Frame = {"action": action, "trip_request_id": trip_id}
        if version is not None:
            what["version"] = version

        async def by_http() -> Reply:
            self._need_signal()
            return await self._town.caller.post(self._token, _ACTION_PATH, what, key)

        async def by_socket() -> Reply:
            self._need_signal()
            if self.line is None:
                return await by_http()
            return await self.line.ask({"type": "trip_action", "idempotency_key": key, **what})

        await self._signal.wait()
        first = by_http if over_http else by_socket
        again = self._town.rng.choice((by_http, by_socket))
        return await self._town.caller.ask(action, first, again)

    def _need_signal(self) -> None:
        if not self._signal.is_set():
            raise ConnectionError("the phone is off")

    async def _set_availability(self, **what: Any) -> None:
        lat, lng = self.car.place
        body = {**what, "location": {"lat": lat, "lng": lng}}
        key = new_key()

        async def send() -> Reply:
            self._need_signal()
            return await self._town.caller.post(self._token, "/api/driver/availability", body, key)

        await self._signal.wait()
        reply = await self._town.caller.ask("availability", send)
        self._online = self._online or reply.ok

    async def _come_back(self) -> None:
        await self._set_availability(is_online=True, availability_status="available")

    async def _pause(self) -> None:
        self._pausing = True
        try:
            await self._set_availability(availability_status="unavailable")
            await asyncio.sleep(_BREAK_S / self._town.speed)
            await self._set_availability(availability_status="available")
        finally:
            self._pausing = False

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Unanswered:
            self._town.tally.counts["unanswered for good"] += 1


def _place(point: dict[str, float]) -> Place:
    return point["lat"], point["lng"]
