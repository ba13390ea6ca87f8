"""A driver: accepts, declines and ignores offers, drives, gives trips back, takes breaks."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final, Protocol

from dispatcher.client import (
    DriverSnapshot,
    Event,
    FrameRefused,
    HttpCalls,
    Offer,
    OfferWithdrawn,
    Place,
    Trip,
    TripChanged,
    Welcome,
)
from dispatcher.client.driver import Action
from dispatcher.core.trips import ACTIVE
from dispatcher.demo.car import Car, Position
from dispatcher.demo.driver_habits import (
    BOARDING_S,
    BREAK_S,
    BREAK_SHARE,
    GIVE_BACK_SHARE,
    DriverHabits,
)
from dispatcher.demo.driver_phone import DriverPhone
from dispatcher.demo.requests import Requests
from dispatcher.demo.stats import Stats, TripRecord

#: Frames and answers about one change may arrive in either order within this time.
_REORDERING_S: Final = 2.0


class DriverContext(Protocol):
    """The parts of the city that a driver uses."""

    requests: Requests
    stats: Stats
    rng: random.Random
    speed: float
    habits: DriverHabits

    def record(self, trip_id: str) -> TripRecord:
        """The record of a trip."""

    def send_rivals(self, app: DriverApp, trip: Trip) -> None:
        """Lets other drivers compete for a trip that `app` is about to accept."""


class Refused(Exception):
    """The server refused a step: its state of the trip differs, and its snapshot will tell."""


class DriverApp:
    """One driver. The app holds the state that the server told last."""

    def __init__(
        self,
        context: DriverContext,
        driver_id: str,
        http: HttpCalls,
        position: Position,
        speed_m_s: float,
    ) -> None:
        self.id = driver_id
        self.car = Car(position, speed_m_s)
        self.trip: Trip | None = None
        self._context = context
        self._counts = context.stats.counts
        self._phone = DriverPhone(
            http, context.requests, context.stats, context.rng, self.car, self._on_event
        )
        self._on_break = False
        self._accepting = 0
        self._accept_answered = asyncio.Event()
        self._ending_trip = False
        self._assigned_at = 0.0
        self._offers: set[str] = set()
        self._versions: dict[str, int] = {}
        self._ride: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the server can reach the driver."""
        return self._phone.connected

    @property
    def free(self) -> bool:
        """Whether a trip may be offered to the driver: connected, without a trip or a break."""
        return self.connected and self.trip is None and not self._on_break and not self._accepting

    @property
    def state(self) -> str:
        """The state that the view counts."""
        if not self.connected:
            return "away"
        if self.trip is not None:
            return "riding" if self.trip.current_status == "ongoing" else "to pickup"
        return "on a break" if self._on_break else "free"

    async def run(self) -> None:
        """Works until it is cancelled."""
        await self._phone.run()

    def _on_event(self, event: Event) -> None:
        match event:
            case Welcome(snapshot=DriverSnapshot() as snapshot):
                self._on_snapshot(snapshot)
            case Offer():
                self._on_offer(event.trip, event.wave)
            case OfferWithdrawn():
                self._offers.discard(event.trip_request_id)
            case TripChanged():
                self._update_trip(event.trip)
            case FrameRefused():
                self._counts[f"error frame {event.error.code}"] += 1

    def _on_snapshot(self, snapshot: DriverSnapshot) -> None:
        driver, trip = snapshot.driver, snapshot.trip
        if driver is None or not driver.is_online:
            self._counts["drivers lost"] += 1
            self._phone.spawn(
                self._phone.set_availability(is_online=True, availability_status="available")
            )
        if trip is not None:
            self._update_trip(trip)
        elif self.trip is not None and time.monotonic() - self._assigned_at > _REORDERING_S:
            self._release_trip()
        self._offers.clear()
        for offer in snapshot.offers:
            self._on_offer(offer.trip, None)

    # --- offers

    def _on_offer(self, trip: Trip, wave: int | None) -> None:
        stats, record = self._context.stats, self._context.record(trip.id)
        self._counts["offers"] += 1
        if record.offered_at is None:
            record.offered_at = time.monotonic()
            stats.add_latency("creation to offer", record.offered_at - record.requested_at)
        if record.assigned_at is None:
            record.wave = max(record.wave, wave or 0)
        self._offers.add(trip.id)
        draw, habits = self._context.rng.random(), self._context.habits
        busy = self.trip is not None or self._on_break or not self.connected
        if busy or draw >= habits.accepts + habits.declines:
            self._counts["offers ignored"] += 1
        else:
            self._phone.spawn(self._answer_offer(trip, draw < habits.accepts))

    async def _answer_offer(self, trip: Trip, accepts: bool) -> None:
        await asyncio.sleep(
            self._context.rng.uniform(*self._context.habits.think_time_s) / self._context.speed
        )
        while self._accepting:  # if the other trip is refused, this one is still of interest
            await self._accept_answered.wait()
        if trip.id not in self._offers or not self.free:
            return
        if accepts:
            self._context.send_rivals(self, trip)
            await self.accept(trip)
        else:
            self._counts["declines"] += 1
            await self._phone.trip_action("decline", trip.id)

    def compete_for(self, trip: Trip) -> None:
        """Tries to accept a trip over HTTP, whether or not it was offered, as one of several drivers."""
        self._phone.spawn(self.accept(trip, over_http=True))

    async def accept(self, trip: Trip, *, over_http: bool = False) -> None:
        """Tries to accept the trip. Raises NoAnswer."""
        self._accepting += 1
        self._accept_answered.clear()
        self._context.record(trip.id).accept_sent_at[self.id] = time.monotonic()
        self._counts["accepts"] += 1
        try:
            reply = await self._phone.trip_action("accept", trip.id, over_http=over_http)
        finally:
            self._accepting -= 1
            if not self._accepting:
                self._accept_answered.set()
        if reply.ok:
            self._context.stats.count_accept()
            self._update_trip(Trip.model_validate(reply.body["trip"]))
        else:
            self._counts["refused"] += 1

    # --- the trip

    def _update_trip(self, trip: Trip) -> None:
        """Takes over the server's state of a trip; older versions are ignored."""
        trip_id, version = trip.id, trip.version
        if version < self._versions.get(trip_id, -1):
            return
        self._versions[trip_id] = version
        is_current = self.trip is not None and self.trip.id == trip_id
        if trip.driver_id == self.id and trip.current_status in ACTIVE:
            if is_current:
                self.trip = trip
            elif self.trip is None:
                self.trip, self._assigned_at = trip, time.monotonic()
                self._ride = self._phone.spawn(self._drive_trip(trip))
            else:
                self._phone.reconnect()  # nobody has two trips: the snapshot tells which one
        elif is_current:
            self._release_trip()

    def _release_trip(self) -> None:
        self.trip = None
        # A driver who ends the trip by an action still waits for its answer.
        if self._ride is not None and not self._ending_trip:
            self._counts["trips taken away"] += 1
            self._ride.cancel()
            self.car.stop()

    async def _drive_trip(self, trip: Trip) -> None:
        rng, status = self._context.rng, trip.current_status
        try:
            if status == "accepted":
                await asyncio.sleep(self.car.drive_to(_position(trip.pickup)))
                if rng.random() < GIVE_BACK_SHARE:
                    await self._trip_step("cancel")
                    return
                await self._trip_step("arrive")
            if status in ("accepted", "arrived"):
                await asyncio.sleep(BOARDING_S / self._context.speed)
                await self._trip_step("start")
            await asyncio.sleep(self.car.drive_to(_position(trip.dropoff or trip.pickup)))
            await self._trip_step("complete")
        except Refused:
            self._counts["steps refused"] += 1
            self.trip = None
            self._phone.reconnect()
        else:
            if rng.random() < BREAK_SHARE:
                await self._take_break()

    async def _trip_step(self, action: Action) -> None:
        assert self.trip is not None
        self._ending_trip = action in ("complete", "cancel")
        try:
            reply = await self._phone.trip_action(action, self.trip.id, version=self.trip.version)
            if not reply.ok:
                raise Refused(reply.code)
            self._update_trip(Trip.model_validate(reply.body["trip"]))
        finally:
            self._ending_trip = False

    async def _take_break(self) -> None:
        self._on_break = True
        try:
            await self._phone.set_availability(availability_status="unavailable")
            await asyncio.sleep(BREAK_S / self._context.speed)
            await self._phone.set_availability(availability_status="available")
        finally:
            self._on_break = False


def _position(place: Place) -> Position:
    return place.lat, place.lng
