"""Queues: at their places offers go by the order of arrival and not by distance."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.distance import great_circle_m
from dispatcher.core.drivers import Driver
from dispatcher.core.times import iso
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Queue, Zone, Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.matching import MatchScripts
from dispatcher.live.offers import Candidate
from dispatcher.live.queues import QueueScripts
from dispatcher.matching.looks import longest_wait_ms
from dispatcher.matching.model import NearbyDriver
from dispatcher.observe.metrics import Metrics
from dispatcher.service.queue_log import QueueLog

#: Of a queue so many from the front are looked at for a trip: more than are asked while it waits.
_MOST_ASKED: Final = 100
#: Drivers numbered in one script: well under a millisecond of Redis' time.
_NUMBERED_AT_ONCE: Final = 100
#: Who stands further back is not numbered: nobody waits for so long.
_MOST_NUMBERED: Final = 5_000


class InLine(NamedTuple):
    """The drivers of a queue whom a trip may ask, in the order of their arrival, with their numbers.

    Without any, the trip asks the nearest.
    """

    queue: str = ""
    candidates: Sequence[Candidate] = ()
    positions: Sequence[int] = ()

    def before(self, nearest: Sequence[Candidate]) -> list[Candidate]:
        """The order of asking: the queue, and then whoever is near and not in it."""
        names = {candidate.driver_id for candidate in self.candidates}
        return [*self.candidates, *(c for c in nearest if c.driver_id not in names)]

    def scores(self) -> dict[str, str]:
        """For each driver, as JSON, why it was they who were asked."""
        return {
            candidate.driver_id: orjson.dumps({"queue": self.queue, "position": position}).decode()
            for candidate, position in zip(self.candidates, self.positions, strict=True)
        }


class Queues:
    """Who stands where. Zones without queues cost nothing. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: QueueScripts,
        matching: MatchScripts,
        queue_log: QueueLog,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._matching = matching
        self._log = queue_log
        self._fix_age_ms = fix_age_s * 1000
        self._standing: dict[tuple[str, str], int] = {}

    async def trips_with_a_line(self, zone: Zone, trip_ids: Sequence[str]) -> list[str]:
        """The trips at whose pickup somebody stands in a queue: no round of matching decides on them."""
        if not zone.queues:
            return []
        keys = keys_of(zone.name)

        async def has_a_line(trip_id: str) -> bool:
            pickup = await self._scripts.pickup_of(keys, trip_id)
            queue = pickup and zone.queue_at(*pickup[:2])
            return bool(pickup and queue and await self._scripts.length(keys, queue.name, pickup[2]))

        have = await asyncio.gather(*(has_a_line(trip_id) for trip_id in trip_ids))
        return [trip_id for trip_id, has in zip(trip_ids, have, strict=True) if has]

    async def in_line(self, zone: Zone, trip: Trip) -> InLine:
        """Who stands in the queue at a trip's pickup, the front first."""
        queue = zone.queue_at(trip.pickup_lat, trip.pickup_lng)
        if queue is None:
            return InLine()
        keys = keys_of(zone.name)
        names = await self._scripts.drivers(keys, queue.name, trip.vehicle_type, most=_MOST_ASKED)
        drivers = await self._matching.nearby(keys, names, max_wait_ms=longest_wait_ms(zone.waves))
        # The script decides again; but the front of a queue may be full of drivers who cannot be asked.
        askable = [driver for driver in drivers if self._may_be_asked(driver)]
        number = {name: i for i, name in enumerate(names, start=1)}
        return InLine(
            queue.name,
            [
                Candidate(d.driver_id, great_circle_m(trip.pickup_lat, trip.pickup_lng, d.lat, d.lng))
                for d in askable
            ],
            [number[driver.driver_id] for driver in askable],
        )

    def _may_be_asked(self, driver: NearbyDriver) -> bool:
        # Whose presence or fix has ended, the script knows by its own clock; and how many offers from
        # elsewhere a driver holds does not matter here.
        return driver.may_be_offered(
            driver.fix_ms, fix_age_ms=self._fix_age_ms, max_open_offers=sys.maxsize
        )

    async def place_of(self, driver: Driver) -> dict[str, Any] | None:
        """A driver's place in a queue as they are shown it: `queue`, `position` from 1, `queued_at`."""
        zone = self._zones.get(driver.zone)
        if zone is None or not zone.queues:
            return None
        place = await self._scripts.place_of(keys_of(zone.name), driver.user_id)
        return place and {
            "queue": place.queue, "position": place.position, "queued_at": iso(place.queued_ms),
        }  # fmt: skip

    async def number(self, zone: Zone) -> None:
        """Numbers the queues of a zone: who has left goes out, and whose number has changed is told."""
        keys = keys_of(zone.name)
        vehicles = await self._scripts.vehicles(keys)
        for queue in zone.queues:
            standing = [await self._number(zone, queue, vehicle_type) for vehicle_type in vehicles]
            self._standing[zone.name, queue.name] = sum(standing)

    def leave_to_others(self, zone: Zone) -> None:
        """Another server numbers the zone's queues: what this one saw before does not count any more."""
        for queue in zone.queues:
            self._standing.pop((zone.name, queue.name), None)

    def tell(self, metrics: Metrics) -> None:
        """What metrics say of it."""
        metrics.labelled_gauge(
            "dispatcher_queue_drivers",
            "Drivers in each queue.",
            ("zone", "queue"),
            self.counts,
        )

    def counts(self) -> dict[tuple[str, ...], float]:
        """How many stand in each queue, by zone and queue; 0 where another server counts them."""
        zones = (self._zones.get(name) for name in self._zones.names())
        return {
            (zone.name, queue.name): float(self._standing.get((zone.name, queue.name), 0))
            for zone in zones
            if zone is not None
            for queue in zone.queues
        }

    async def _number(self, zone: Zone, queue: Queue, vehicle_type: str) -> int:
        keys, first, standing = keys_of(zone.name), 0, 0
        names = await self._scripts.drivers(keys, queue.name, vehicle_type, most=_MOST_NUMBERED)
        while part := names[first : first + _NUMBERED_AT_ONCE]:
            count = await self._scripts.number_queue(
                keys, queue.name, vehicle_type, part, before=standing
            )
            standing = count.standing
            self._log.left(count.lost, count.now_ms)
            first += len(part)
        return standing
