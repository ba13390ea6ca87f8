"""A customer: asks for a trip, watches it on a WebSocket, and now and then cancels."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Final

from dispatcher.core.trips import FINAL
from dispatcher.demo.calls import LOST, Caller, Reply, Unanswered, new_key
from dispatcher.demo.car import Place
from dispatcher.demo.line import Frame, Line
from dispatcher.demo.tally import Tally, TripStory

#: Of all customers: cancels once a driver is on the way.
_CANCELS: Final = 0.02
#: Real seconds between attempts to connect.
_AGAIN_S: Final = 0.5


class CustomerApp:
    """One customer with one trip."""

    def __init__(
        self,
        caller: Caller,
        tally: Tally,
        rng: random.Random,
        *,
        token: str,
        story: TripStory,
        trip_request_id: str,
        pickup: Place,
        dropoff: Place,
    ) -> None:
        self._caller = caller
        self._tally = tally
        self._token = token
        self.story = story
        self._wanted = {
            "trip_request_id": trip_request_id,
            "pickup": {"lat": pickup[0], "lng": pickup[1]},
            "dropoff": {"lat": dropoff[0], "lng": dropoff[1]},
        }
        self._trip_id = ""
        self._cancels = rng.random() < _CANCELS
        self._canceller: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._heartbeat_s = 5.0

    async def run(self) -> None:
        """Until the trip is over."""
        # The app is open before the trip is wanted: no news can be missed.
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(self._tally.ended)
        try:
            await self._create()
            await self._over.wait()
        except Unanswered:
            self.story.status = "not created"
            self._tally.counts["unanswered for good"] += 1
        finally:
            watch.cancel()

    async def _create(self) -> None:
        key = new_key()

        async def send() -> Reply:
            return await self._caller.post(self._token, "/api/customer/ride/create", self._wanted, key)

        self.story.requested_at = time.monotonic()
        reply = await self._caller.ask("create", send)
        if not reply.ok:
            self.story.status = "not created"
            self._over.set()
            return
        self._trip_id = reply.body["trip"]["id"]
        self._learn(reply.body["trip"])

    async def _watch(self) -> None:
        while True:
            try:
                line = await Line.open(self._caller, self._token)
                beat = asyncio.create_task(self._beat(line))
                try:
                    async for frame in line.frames():
                        await self._hear(frame)
                finally:
                    beat.cancel()
                    await line.close()
            except LOST:
                self._tally.counts["connections failed"] += 1
            await asyncio.sleep(_AGAIN_S)

    async def _beat(self, line: Line) -> None:
        with contextlib.suppress(*LOST):  # the reader sees that too
            while True:
                await asyncio.sleep(self._heartbeat_s)
                await line.tell({"type": "heartbeat"})

    async def _hear(self, frame: Frame) -> None:
        match frame["type"]:
            case "welcome":
                self._heartbeat_s = float(frame["heartbeat_s"])
                live = frame["snapshot"]["trips"]
                for trip in live:
                    self._learn(trip)
                if self._trip_id and not live:
                    reply = await self._caller.get(self._token, f"/api/customer/ride/{self._trip_id}")
                    if reply.ok:
                        self._learn(reply.body["trip"])
            case "trip":
                self._learn(frame["trip"])
            case "driver_location":
                self._tally.counts["positions seen by customers"] += 1

    def _learn(self, trip: Frame) -> None:
        story, now = self.story, time.monotonic()
        if trip["version"] <= story.version:
            return
        story.version, story.status = trip["version"], trip["current_status"]
        # News of a slow connection may begin with a later state than "accepted".
        if trip["driver_id"] is not None and story.assigned_at is None:
            story.assigned_at = now
            self._tally.took("time to assignment", now - story.requested_at)
        if story.status == "accepted":
            sent_at = story.accept_sent_at.get(trip["driver_id"])
            if sent_at is not None:
                self._tally.took("accept to customer", now - sent_at)
            if self._cancels:
                self._cancels = False
                self._canceller = asyncio.create_task(self._cancel())
                self._canceller.add_done_callback(self._tally.ended)
        if story.status in FINAL:
            self._over.set()

    async def _cancel(self) -> None:
        key, body = new_key(), {"trip_request_id": self._trip_id, "reason": "changed my mind"}

        async def send() -> Reply:
            return await self._caller.post(self._token, "/api/customer/ride/cancel", body, key)

        try:
            reply = await self._caller.ask("cancel", send)
        except Unanswered:
            self._tally.counts["unanswered for good"] += 1
            return
        if reply.ok:
            self._learn(reply.body["trip"])
