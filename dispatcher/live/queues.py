"""Queues in Redis: who waits at a place, in the order in which they arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dispatcher.core.drivers import is_free
from dispatcher.core.zones import ZONE
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline


class PlaceInQueue(NamedTuple):
    """A driver's place in a queue: its name, their number there from 1, and when they arrived, in ms."""

    queue: str
    position: int
    queued_ms: int


class SavedPlace(NamedTuple):
    """A driver's place in a queue as Postgres was told of it; times in ms."""

    queue: str
    queued_ms: int
    absence_ms: int


class QueueCount(NamedTuple):
    """What numbering a part of a queue came to: the time (ms), how many hold a place, those before
    included, and who has lost theirs."""

    now_ms: int
    standing: int
    lost: list[str]


def is_place(queue: str, *times_ms: str) -> bool:
    """Whether these values of a driver's hash are such as servers write: no key is made of others."""
    return bool(ZONE.fullmatch(queue)) and all(text.isascii() and text.isdigit() for text in times_ms)


class QueueScripts:
    """The queues of a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def begin_look(self, keys: Keys, node: str, *, every_ms: int) -> bool:
        """Whether this server is to number the zone's queues: one does, within `every_ms`."""
        won: Any = await self._pipeline.command("SET", keys.queue_look, node, "NX", "PX", every_ms)
        return bool(won)

    async def vehicles(self, keys: Keys) -> list[str]:
        """The vehicle types that the zone has."""
        return sorted(await self._pipeline.command("SMEMBERS", keys.vehicles))

    async def length(self, keys: Keys, queue: str, vehicle_type: str) -> int:
        """How many stand in a queue; somebody who has just left may be among them."""
        found: int = await self._pipeline.command("ZCARD", keys.queue(queue, vehicle_type))
        return found

    async def drivers(
        self, keys: Keys, queue: str, vehicle_type: str, *, first: int = 0, most: int
    ) -> list[str]:
        """Drivers in the order of a queue, from the place `first` (0: the front) on."""
        found: list[str] = await self._pipeline.command(
            "ZRANGE", keys.queue(queue, vehicle_type), first, first + most - 1
        )
        return found

    async def number_queue(
        self, keys: Keys, queue: str, vehicle_type: str, drivers: Sequence[str], *, before: int
    ) -> QueueCount:
        """Numbers these drivers, who follow on `before` others, and takes out who holds no place."""
        reply = await self._pipeline.run(
            "number_queue",
            (
                keys.queue(queue, vehicle_type),
                keys.channel(""),
                *(keys.driver(name) for name in drivers),
            ),
            (queue, vehicle_type, before, *drivers),
        )
        return QueueCount(*reply)

    async def put_back(
        self, keys: Keys, queue: str, vehicle_type: str, driver_id: str, queued_ms: int
    ) -> None:
        """Puts a driver who holds a place, and was lost from the queue, back into it."""
        await self._pipeline.command("ZADD", keys.queue(queue, vehicle_type), queued_ms, driver_id)

    async def place_of(self, keys: Keys, driver_id: str) -> PlaceInQueue | None:
        """The place that a driver holds, as it was numbered last."""
        online, availability, trip_id, vehicle_type, queue, queued_at = await self._pipeline.command(
            "HMGET", keys.driver(driver_id),
            "is_online", "availability_status", "trip_id", "vehicle_type", "queue", "queued_at",
        )  # fmt: skip
        is_standing = queue and queued_at and is_place(queue, queued_at) and vehicle_type
        if not is_standing or not is_free(
            is_online=online == "1", availability_status=availability, trip_id=trip_id
        ):
            return None
        before: int | None = await self._pipeline.command(
            "ZRANK", keys.queue(queue, vehicle_type), driver_id
        )
        return None if before is None else PlaceInQueue(queue, before + 1, int(queued_at))

    async def pickup_of(self, keys: Keys, trip_id: str) -> tuple[float, float, str] | None:
        """Where a trip that waits begins (lat, lng in degrees), and the vehicle type it asks for."""
        lat, lng, vehicle_type, status = await self._pipeline.command(
            "HMGET", keys.trip(trip_id), "pickup_lat", "pickup_lng", "vehicle_type", "current_status"
        )
        if status != "pending" or not vehicle_type:
            return None
        try:
            return float(lat), float(lng), vehicle_type
        except (TypeError, ValueError):
            return None  # the trip's own wave finds out
