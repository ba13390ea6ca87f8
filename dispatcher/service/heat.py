"""Where work is waiting, sampled: one sample of a zone answers everybody who asks within some seconds.

A zone that nobody asks about costs nothing. What a sample reads is bounded, whatever the zone holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import structlog

from dispatcher.core.drivers import is_free
from dispatcher.core.errors import Refusal
from dispatcher.core.times import iso, now_ms
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Status
from dispatcher.core.zones import Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.zone_view import ZoneEvent, ZoneViewScripts
from dispatcher.matching.heat import AskedTrip, HeatMap
from dispatcher.observe.metrics import Metrics

log = structlog.get_logger("dispatcher.heat")

#: Demand is what was asked for in this time: long enough to fill a map, short enough to be still true.
_WINDOW_MS: Final = 600_000
#: A sample answers for this long.
SAMPLE_S: Final = 10.0
#: Past this a sample that could not be renewed is no answer any more.
_STALE_S: Final = 60.0
#: Whoever tells a zone's metric does so until they have not sampled it for this long.
_TOLD_MS: Final = 30_000
#: What a zone has at most: drivers and trips beyond are not counted.
_MAX_DRIVERS: Final = 5_000
_MAX_TRIPS: Final = 20_000
#: Events that are read together, and of one sample: the stream holds no more.
_EVENTS_PAGE: Final = 500
_MAX_PAGES: Final = 200


class _Asked(NamedTuple):
    lat: float
    lng: float
    customer_id: str
    status: str
    version: int
    #: When it was asked for; 0: before the events that were read.
    asked_ms: int


class HeatMaps:
    """The heat of all zones. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: ZoneViewScripts,
        node: str,
        fix_age_s: int,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._zones = {
            name: _ZoneHeat(name, scripts, node, fix_age_ms=fix_age_s * 1000, sample_s=sample_s)
            for name in zones.names()
        }

    async def of(self, zone: str, *, in_detail: bool) -> dict[str, Any]:
        """Demand and supply by cell, `in_detail` for operators. Raises Refusal invalid_zone."""
        heat = self._zones.get(zone)
        if heat is None:
            raise Refusal("invalid_zone")
        sample = await heat.sample()
        cells = sample.map.for_operators() if in_detail else sample.map.for_drivers()
        window_s = _WINDOW_MS // 1000
        return {"zone": zone, "sampled_at": iso(sample.at_ms), "window_s": window_s, **cells}

    def tell(self, metrics: Metrics) -> None:
        """What metrics say of it."""
        metrics.labelled_gauge(
            "dispatcher_scarce_cells",
            "Cells in which more trips wait than drivers are free; 0 where nobody looks at the heat.",
            ("zone",),
            self._scarce_cells,
        )
        metrics.counter(
            "dispatcher_heat_samples", "Samples of zones' heat.",
            lambda: sum(heat.samples for heat in self._zones.values()),
        )  # fmt: skip

    def _scarce_cells(self) -> Mapping[tuple[str, ...], float]:
        return {(name,): float(heat.scarce_cells()) for name, heat in self._zones.items()}

    async def close(self) -> None:
        """Ends what is being sampled."""
        await asyncio.gather(*(heat.close() for heat in self._zones.values()))


class _Sample(NamedTuple):
    at_ms: int
    taken_s: float
    map: HeatMap
    #: One of all servers that sample a zone tells its metric.
    is_told: bool


class _ZoneHeat:
    def __init__(
        self, zone: str, scripts: ZoneViewScripts, node: str, *, fix_age_ms: int, sample_s: float
    ) -> None:
        self._keys = keys_of(zone)
        self._scripts = scripts
        self._node = node
        self._fix_age_ms = fix_age_ms
        self._sample_s = sample_s
        self._last: _Sample | None = None
        self._task: asyncio.Task[_Sample] | None = None
        self._trips: dict[str, _Asked] = {}
        self._last_event = ""
        self.samples = 0

    async def sample(self) -> _Sample:
        """The last sample, or a new one. Who asks while one is taken gets the one before, if it is not
        too old."""
        last, now_s = self._last, time.monotonic()
        if last is not None and now_s - last.taken_s < self._sample_s:
            return last
        if self._task is None:
            self._task = asyncio.create_task(self._take())
            self._task.add_done_callback(self._taken)
        if last is not None and now_s - last.taken_s < _STALE_S:
            return last
        return await asyncio.shield(self._task)

    def _taken(self, task: asyncio.Task[_Sample]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            log.info("heat not sampled", zone=self._keys.zone, reason=repr(error))

    def scarce_cells(self) -> int:
        """Those of the last sample, if it is not too old and this server is the one that tells them."""
        last = self._last
        if last is None or not last.is_told or time.monotonic() - last.taken_s > _STALE_S:
            return 0
        return last.map.scarce_cells()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self) -> _Sample:
        at_ms = now_ms()
        await self._read_events(at_ms)
        free = await self._free_drivers(at_ms)
        trips = [
            AskedTrip(
                trip.lat, trip.lng, trip.customer_id, trip.status == Status.PENDING,
                is_new=trip.asked_ms > at_ms - _WINDOW_MS,
            )
            for trip in self._trips.values()
        ]  # fmt: skip
        is_told = await self._scripts.begin_heat(self._keys, self._node, every_ms=_TOLD_MS)
        # In a thread: thousands of cells take some ms, which other calls would wait for.
        heat = await asyncio.to_thread(HeatMap, trips, free)
        self._last = _Sample(at_ms, time.monotonic(), heat, is_told)
        self.samples += 1
        return self._last

    async def _read_events(self, at_ms: int) -> None:
        last = self._last
        if last is None or time.monotonic() - last.taken_s > _STALE_S:
            # Nobody has asked for a while; or the stream may be another one since.
            self._trips.clear()
            self._last_event = f"{at_ms - _WINDOW_MS}-0"
        for _ in range(_MAX_PAGES):
            page = await self._scripts.events_after(self._keys, self._last_event, _EVENTS_PAGE)
            for event in page:
                self._last_event = event.id
                self._note(event)
            if len(page) < _EVENTS_PAGE:
                break
        since_ms = at_ms - _WINDOW_MS
        kept = [
            (trip_id, trip)
            for trip_id, trip in self._trips.items()
            if trip.asked_ms > since_ms or trip.status == Status.PENDING
        ]
        self._trips = dict(kept[-_MAX_TRIPS:])

    def _note(self, told: ZoneEvent) -> None:
        event, trip = told.event["event"], told.event.get("trip")
        if not trip:
            return
        known = self._trips.get(trip["id"])
        asked_ms = known.asked_ms if known else 0
        if event == Event.CREATED:
            asked_ms = asked_ms or int(told.id.partition("-")[0])
        if known is not None and known.version >= trip["version"]:
            # Events may be told twice, and an earlier one after a later one.
            self._trips[trip["id"]] = known._replace(asked_ms=asked_ms)
            return
        self._trips[trip["id"]] = _Asked(
            trip["pickup"]["lat"], trip["pickup"]["lng"], trip["customer_id"], trip["current_status"],
            trip["version"], asked_ms,
        )  # fmt: skip

    async def _free_drivers(self, at_ms: int) -> list[tuple[float, float]]:
        names = await self._scripts.seen_drivers(self._keys, _MAX_DRIVERS)
        drivers = await self._scripts.read_drivers(self._keys, names)
        return [
            (driver.lat, driver.lng)
            for driver in drivers
            if driver.fix_ms > at_ms - self._fix_age_ms
            and is_free(
                is_online=driver.is_online,
                availability_status=driver.availability_status,
                trip_id=driver.trip_id,
            )
        ]
