"""A driver: takes, declines and ignores offers, drives, gives trips back, has a break."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Final, Protocol

from dispatcher.core.trips import ACTIVE
from dispatcher.demo.calls import Caller
from dispatcher.demo.car import Car, Place
from dispatcher.demo.line import Frame
from dispatcher.demo.phone import Phone
from dispatcher.demo.tally import Tally, TripStory

#: Simulated seconds: to get in, to have a break.
_BOARDS_S: Final = 60.0
_BREAK_S: Final = 600.0
#: Of accepted trips: the driver gives it back at the pickup. Of completed ones: a break follows.
_GIVES_BACK: Final = 0.015
_PAUSES: Final = 0.04
#: Frames and answers about one change may arrive in either order within this time.
_ORDER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Habits:
    """What drivers do with offers: shares of all, and simulated seconds to look at one.

    What is neither accepted nor declined is ignored until its deadline.
    """

    accepts: float = 0.80
    declines: float = 0.12
    thinks_s: tuple[float, float] = (2.0, 8.0)


DEFAULT_HABITS: Final = Habits()


class Town(Protocol):
    """What a driver needs of the city."""

    caller: Caller
    tally: Tally
    rng: random.Random
    speed: float
    habits: Habits

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
        self._town = town
        self._counts = town.tally.counts
        self._phone = Phone(town.caller, town.tally, town.rng, token, self.car, self._hear)
        self._pausing = False
        self._accepting = 0
        self._answered = asyncio.Event()
        self._finishing = False
        self._held_since = 0.0
        self._offers: set[str] = set()
        self._known: dict[str, int] = {}
        self._errand: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the server can reach them."""
        return self._phone.connected

    @property
    def free(self) -> bool:
        """Connected, with nothing to do: whom a trip may be offered to."""
        return self.connected and self.trip is None and not self._pausing and not self._accepting

    @property
    def state(self) -> str:
        """For the view."""
        if not self.connected:
            return "away"
        if self.trip is not None:
            return "riding" if self.trip["current_status"] == "ongoing" else "to pickup"
        return "on a break" if self._pausing else "free"

    async def run(self) -> None:
        """Lives until it is cancelled."""
        await self._phone.run()

    def _hear(self, frame: Frame) -> None:
        match frame["type"]:
            case "welcome":
                self._compare(frame["snapshot"])
            case "offer":
                self._consider(frame["trip"], frame["wave"])
            case "offer_withdrawn":
                self._offers.discard(frame["trip_request_id"])
            case "trip":
                self._learn(frame["trip"])
            case "error":
                self._counts[f"error frame {frame['response_code']}"] += 1

    def _compare(self, snapshot: Frame) -> None:
        driver, trip = snapshot["driver"], snapshot["trip"]
        if driver is None or not driver["is_online"]:
            self._counts["drivers lost"] += 1
            self._phone.spawn(
                self._phone.set_availability(is_online=True, availability_status="available")
            )
        if trip is not None:
            self._learn(trip)
        elif self.trip is not None and time.monotonic() - self._held_since > _ORDER_S:
            self._let_go()
        self._offers.clear()
        for offer in snapshot["offers"]:
            self._consider(offer["trip"], None)

    # --- offers

    def _consider(self, trip: Frame, wave: int | None) -> None:
        tally, story = self._town.tally, self._town.story(trip["id"])
        self._counts["offers"] += 1
        if story.offered_at is None:
            story.offered_at = time.monotonic()
            tally.took("creation to offer", story.offered_at - story.requested_at)
        if story.assigned_at is None:
            story.wave = max(story.wave, wave or 0)
        self._offers.add(trip["id"])
        draw, habits = self._town.rng.random(), self._town.habits
        busy = self.trip is not None or self._pausing or not self.connected
        if busy or draw >= habits.accepts + habits.declines:
            self._counts["offers ignored"] += 1
        else:
            self._phone.spawn(self._decide(trip, draw < habits.accepts))

    async def _decide(self, trip: Frame, accepts: bool) -> None:
        await asyncio.sleep(self._town.rng.uniform(*self._town.habits.thinks_s) / self._town.speed)
        while self._accepting:  # whoever is refused another trip looks at this one
            await self._answered.wait()
        if trip["id"] not in self._offers or not self.free:
            return
        if accepts:
            self._town.call_crowd(self, trip)
            await self.take(trip)
        else:
            self._counts["declines"] += 1
            await self._phone.act("decline", trip["id"])

    def join(self, trip: Frame) -> None:
        """Is one of a crowd that tries to get a trip, offered or not, over HTTP."""
        self._phone.spawn(self.take(trip, over_http=True))

    async def take(self, trip: Frame, *, over_http: bool = False) -> None:
        """Tries to get the trip. Raises Unanswered."""
        self._accepting += 1
        self._answered.clear()
        self._town.story(trip["id"]).accept_sent_at[self.id] = time.monotonic()
        self._counts["accepts"] += 1
        try:
            reply = await self._phone.act("accept", trip["id"], over_http=over_http)
        finally:
            self._accepting -= 1
            if not self._accepting:
                self._answered.set()
        if reply.ok:
            self._town.tally.accepted()
            self._learn(reply.body["trip"])
        else:
            self._counts["refused"] += 1

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
                self._errand = self._phone.spawn(self._serve(trip))
            else:
                self._phone.reconnect()  # two at once cannot be: the snapshot tells which
        elif holds:
            self._let_go()

    def _let_go(self) -> None:
        self.trip = None
        # Whoever ends the trip by their own action still waits for its answer.
        if self._errand is not None and not self._finishing:
            self._counts["trips taken away"] += 1
            self._errand.cancel()
            self.car.stop()

    async def _serve(self, trip: Frame) -> None:
        rng, status = self._town.rng, trip["current_status"]
        try:
            if status == "accepted":
                await asyncio.sleep(self.car.head_for(_place(trip["pickup"])))
                if rng.random() < _GIVES_BACK:
                    await self._step("cancel")
                    return
                await self._step("arrive")
            if status in ("accepted", "arrived"):
                await asyncio.sleep(_BOARDS_S / self._town.speed)
                await self._step("start")
            await asyncio.sleep(self.car.head_for(_place(trip["dropoff"] or trip["pickup"])))
            await self._step("complete")
        except Refused:
            self._counts["steps refused"] += 1
            self.trip = None
            self._phone.reconnect()
        else:
            if rng.random() < _PAUSES:
                await self._pause()

    async def _step(self, action: str) -> None:
        assert self.trip is not None
        self._finishing = action in ("complete", "cancel")
        try:
            reply = await self._phone.act(action, self.trip["id"], version=self.trip["version"])
            if not reply.ok:
                raise Refused(reply.code)
            self._learn(reply.body["trip"])
        finally:
            self._finishing = False

    async def _pause(self) -> None:
        self._pausing = True
        try:
            await self._phone.set_availability(availability_status="unavailable")
            await asyncio.sleep(_BREAK_S / self._town.speed)
            await self._phone.set_availability(availability_status="available")
        finally:
            self._pausing = False


def _place(point: dict[str, float]) -> Place:
    return point["lat"], point["lng"]
