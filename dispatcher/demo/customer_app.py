"""A customer: asks for a trip, watches it on a WebSocket, and now and then cancels."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from dispatcher.client import CustomerClient, DriverLocation, NoAnswer, Trip, TripChanged
from dispatcher.client.customer import cancellation_intent, creation_intent
from dispatcher.client.replies import Intent
from dispatcher.core.trips import FINAL
from dispatcher.demo.car import Position
from dispatcher.demo.requests import Requests
from dispatcher.demo.stats import Stats, TripRecord

#: Share of customers who cancel once a driver is on the way.
_CANCEL_SHARE: Final = 0.02


class CustomerApp:
    """One customer with one trip."""

    def __init__(
        self,
        client: CustomerClient,
        requests: Requests,
        stats: Stats,
        rng: random.Random,
        *,
        record: TripRecord,
        trip_request_id: str,
        pickup: Position,
        dropoff: Position,
    ) -> None:
        self._client = client
        self._requests = requests
        self._stats = stats
        self.record = record
        self._creation = creation_intent(pickup, dropoff=dropoff, trip_request_id=trip_request_id)
        self._cancels = rng.random() < _CANCEL_SHARE
        self._canceller: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()

    async def run(self) -> None:
        """Asks for the trip and watches it until it is over."""
        # The socket opens while the trip is asked for; a snapshot tells what it has missed.
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(self._stats.keep_error)
        try:
            self.record.requested_at = time.monotonic()
            if await self._change("create", self._creation):
                await self._finished.wait()
        except NoAnswer:
            self._stats.counts["unanswered for good"] += 1
        finally:
            if self.record.version < 0:
                self.record.status = "not created"
            watch.cancel()
            await self._client.close()

    async def _change(self, name: str, intent: Intent) -> bool:
        """Whether the server did it. Raises NoAnswer."""
        reply = await self._requests.request(name, lambda: self._client.http.send(intent))
        if reply.ok:
            trip = Trip.model_validate(reply.body["trip"])
            self._client.take(trip)
            self._update_trip(trip)
        return reply.ok

    async def _watch(self) -> None:
        async for event in self._client.events():
            if isinstance(event, TripChanged):
                self._update_trip(event.trip)
            elif isinstance(event, DriverLocation):
                self._stats.counts["positions seen by customers"] += 1

    def _update_trip(self, trip: Trip) -> None:
        record, now = self.record, time.monotonic()
        if trip.version <= record.version:
            return
        record.version, record.status = trip.version, trip.current_status
        # On a slow connection the first message may tell a later state than "accepted".
        if trip.driver_id is not None and record.assigned_at is None:
            record.assigned_at = now
            self._stats.add_latency("time to assignment", now - record.requested_at)
        if record.status == "accepted":
            sent_at = record.accept_sent_at.get(trip.driver_id or "")
            if sent_at is not None:
                self._stats.add_latency("accept to customer", now - sent_at)
            if self._cancels:
                self._cancels = False
                self._canceller = asyncio.create_task(self._cancel(trip.id))
                self._canceller.add_done_callback(self._stats.keep_error)
        if record.status in FINAL:
            self._finished.set()

    async def _cancel(self, trip_id: str) -> None:
        try:
            await self._change("cancel", cancellation_intent(trip_id, reason="changed my mind"))
        except NoAnswer:
            self._stats.counts["unanswered for good"] += 1
