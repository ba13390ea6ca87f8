"""The customer of an active trip sees the driver move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from dispatcher.core.actors import Role, address_of
from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.keys import keys_of
from dispatcher.live.positions import DriverFix
from dispatcher.live.publisher import Publisher
from dispatcher.live.settlement import Message
from dispatcher.live.state import StateScripts

_MAX_TRIPS: Final = 100_000


class CustomerTracking:
    """Sends `driver_location` frames. Remembers which customer a trip belongs to."""

    def __init__(self, *, state: StateScripts, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._customers: dict[str, str] = {}

    async def publish_moves(self, zone: str, moves: Sequence[tuple[DriverFix, str]]) -> None:
        """Tells the customers of these trips where their drivers are; the next position comes soon,
        so one that cannot be told is dropped."""
        try:
            await self._learn_customers(zone, {trip_id for _, trip_id in moves})
            messages = [
                self._message(fix, trip_id) for fix, trip_id in moves if trip_id in self._customers
            ]
            if messages:
                await self._publisher.publish(zone, messages)
        except StoreUnavailable:
            pass

    async def _learn_customers(self, zone: str, trip_ids: set[str]) -> None:
        unknown = [trip_id for trip_id in trip_ids if trip_id not in self._customers]
        keys = keys_of(zone)
        found = await asyncio.gather(*(self._state.customer_of(keys, t) for t in unknown))
        if len(self._customers) > _MAX_TRIPS:
            self._customers.clear()
        self._customers |= {t: c for t, c in zip(unknown, found, strict=True) if c}

    def _message(self, fix: DriverFix, trip_id: str) -> Message:
        frame = orjson.dumps(
            {
                "type": "driver_location", "trip_request_id": trip_id,
                "driver_id": fix.driver_id, "lat": fix.lat, "lng": fix.lng,
                "recorded_at_ms": fix.at_ms,
            }
        )  # fmt: skip
        return Message([address_of(Role.CUSTOMER, self._customers[trip_id])], frame.decode())
