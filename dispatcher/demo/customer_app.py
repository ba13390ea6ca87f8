"""A customer: asks for a trip, watches it on a WebSocket, and now and then cancels."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Final

from dispatcher.core.trips import FINAL
from dispatcher.demo.api_client import CONNECTION_ERRORS, ApiClient, Reply, Unanswered, new_key
from dispatcher.demo.app_socket import AppSocket, Frame
from dispatcher.demo.car import Position
from dispatcher.demo.stats import Stats, TripRecord

#: Share of customers who cancel once a driver is on the way.
_CANCEL_SHARE: Final = 0.02
#: Real seconds between attempts to connect.
_RECONNECT_S: Final = 0.5


class CustomerApp:
    """One customer with one trip."""

    def __init__(
        self,
        api: ApiClient,
        stats: Stats,
        rng: random.Random,
        *,
        token: str,
        record: TripRecord,
        trip_request_id: str,
        pickup: Position,
        dropoff: Position,
    ) -> None:
        self._api = api
        self._stats = stats
        self._token = token
        self.record = record
        self._request = {
            "trip_request_id": trip_request_id,
            "pickup": {"lat": pickup[0], "lng": pickup[1]},
            "dropoff": {"lat": dropoff[0], "lng": dropoff[1]},
        }
        self._trip_id = ""
        self._cancels = rng.random() < _CANCEL_SHARE
        self._canceller: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._heartbeat_s = 5.0

    async def run(self) -> None:
        """Asks for the trip and watches it until it is over."""
        # The socket opens before the trip is asked for, so that the app misses no message.
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(self._stats.keep_error)
        try:
            await self._create()
            await self._finished.wait()
        except Unanswered:
            self.record.status = "not created"
            self._stats.counts["unanswered for good"] += 1
        finally:
            watch.cancel()

    async def _create(self) -> None:
        key = new_key()

        async def send() -> Reply:
            return await self._api.post(self._token, "/api/customer/ride/create", self._request, key)

        self.record.requested_at = time.monotonic()
        reply = await self._api.request("create", send)
        if not reply.ok:
            self.record.status = "not created"
            self._finished.set()
            return
        self._trip_id = reply.body["trip"]["id"]
        self._update_trip(reply.body["trip"])

    async def _watch(self) -> None:
        while True:
            try:
                socket = await AppSocket.open(self._api, self._token)
                heartbeats = asyncio.create_task(self._send_heartbeats(socket))
                try:
                    async for frame in socket.frames():
                        await self._on_frame(frame)
                finally:
                    heartbeats.cancel()
                    await socket.close()
            except CONNECTION_ERRORS:
                self._stats.counts["connections failed"] += 1
            await asyncio.sleep(_RECONNECT_S)

    async def _send_heartbeats(self, socket: AppSocket) -> None:
        with contextlib.suppress(*CONNECTION_ERRORS):  # the reader of the frames counts them
            while True:
                await asyncio.sleep(self._heartbeat_s)
                await socket.send({"type": "heartbeat"})

    async def _on_frame(self, frame: Frame) -> None:
        match frame["type"]:
            case "welcome":
                self._heartbeat_s = float(frame["heartbeat_s"])
                active_trips = frame["snapshot"]["trips"]
                for trip in active_trips:
                    self._update_trip(trip)
                if self._trip_id and not active_trips:
                    reply = await self._api.get(self._token, f"/api/customer/ride/{self._trip_id}")
                    if reply.ok:
                        self._update_trip(reply.body["trip"])
            case "trip":
                self._update_trip(frame["trip"])
            case "driver_location":
                self._stats.counts["positions seen by customers"] += 1

    def _update_trip(self, trip: Frame) -> None:
        record, now = self.record, time.monotonic()
        if trip["version"] <= record.version:
            return
        record.version, record.status = trip["version"], trip["current_status"]
        # On a slow connection the first message may tell a later state than "accepted".
        if trip["driver_id"] is not None and record.assigned_at is None:
            record.assigned_at = now
            self._stats.add_latency("time to assignment", now - record.requested_at)
        if record.status == "accepted":
            sent_at = record.accept_sent_at.get(trip["driver_id"])
            if sent_at is not None:
                self._stats.add_latency("accept to customer", now - sent_at)
            if self._cancels:
                self._cancels = False
                self._canceller = asyncio.create_task(self._cancel())
                self._canceller.add_done_callback(self._stats.keep_error)
        if record.status in FINAL:
            self._finished.set()

    async def _cancel(self) -> None:
        key, body = new_key(), {"trip_request_id": self._trip_id, "reason": "changed my mind"}

        async def send() -> Reply:
            return await self._api.post(self._token, "/api/customer/ride/cancel", body, key)

        try:
            reply = await self._api.request("cancel", send)
        except Unanswered:
            self._stats.counts["unanswered for good"] += 1
            return
        if reply.ok:
            self._update_trip(reply.body["trip"])
