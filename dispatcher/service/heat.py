"""Where work is waiting, sampled: one sample of a zone answers every operator who asks within some
seconds, and one picture every driver, on whatever server, for some minutes.

A zone that nobody asks about costs nothing. What a sample reads is bounded, whatever the zone holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dispatcher.core.drivers import is_free
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.times import iso
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Status
from dispatcher.core.zones import Zones
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.keys import keys_of
from dispatcher.live.shown_heat import ShownHeat
from dispatcher.live.zone_view import ZoneEvent, ZoneViewScripts
from dispatcher.matching.heat import (
    AskedTrip,
    CellCounts,
    HeatMap,
    counts_for_drivers,
    picture_for_drivers,
)
from dispatcher.matching.model import Place
from dispatcher.observe.metrics import Metrics
from dispatcher.service.lasting import STALE_S, Lasting

#: Demand is what was asked for in this time: long enough to fill a map, short enough to be still true.
_WINDOW_MS: Final = 600_000
#: What drivers are shown is the demand of the last whole one of these times, each of which is counted
#: once: whatever changes between two pictures is of other trips, under other noise.
_SHOWN_MS: Final = 300_000
#: A sample answers for this long.
SAMPLE_S: Final = 10.0
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
        clock: ComparisonScripts,
        node: str,
        fix_age_s: int,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._zones = {
            name: _ZoneHeat(name, scripts, clock, node, fix_age_ms=fix_age_s * 1000, sample_s=sample_s)
            for name in zones.names()
        }

    async def of(self, zone: str, *, in_detail: bool) -> dict[str, Any]:
        """Demand and supply by cell, `in_detail` for operators. Raises Refusal invalid_zone."""
        heat = self._zones.get(zone)
        if heat is None:
            raise Refusal("invalid_zone")
        if in_detail:
            sample = await heat.sample.get()
            at_ms, window_ms, cells = sample.at_ms, _WINDOW_MS, sample.cells
        else:
            shown = await heat.shown.get()
            at_ms, window_ms, cells = shown.at_ms, _SHOWN_MS, shown.cells
        return {"zone": zone, "sampled_at": iso(at_ms), "window_s": window_ms // 1000, **cells}

    def tell(self, metrics: Metrics) -> None:
        """What metrics say of it."""
        metrics.labelled_gauge(
            "dispatcher_scarce_cells",
            "Cells in which more trips wait than drivers are free; 0 where no operator looks at it.",
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
    """What operators see, and when it was made."""

    at_ms: int
    cells: dict[str, Any]
    scarce_cells: int
    #: One of all servers that sample a zone tells its metric.
    is_told: bool


class _Shown(NamedTuple):
    """What drivers see, and when it was made."""

    at_ms: int
    cells: dict[str, Any]


class _Drivers(NamedTuple):
    """Where the drivers of a zone are, and those of them who are free."""

    all: list[Place]
    free: list[Place]


class _ZoneHeat:
    def __init__(
        self,
        zone: str,
        scripts: ZoneViewScripts,
        clock: ComparisonScripts,
        node: str,
        *,
        fix_age_ms: int,
        sample_s: float,
    ) -> None:
        self._keys = keys_of(zone)
        self._scripts = scripts
        self._clock = clock
        self._node = node
        self._fix_age_ms = fix_age_ms
        self._trips: dict[str, _Asked] = {}
        self._last_event = ""
        self._read_s = -STALE_S
        self._reading = asyncio.Lock()
        self._forgetting: asyncio.TimerHandle | None = None
        self.samples = 0
        self.sample = Lasting(zone, sample_s, self._take)
        self.shown = Lasting(zone, sample_s, self._show)

    def scarce_cells(self) -> int:
        """Those of the last sample, if it is not too old and this server is the one that tells them."""
        last = self.sample.last()
        return last.scarce_cells if last is not None and last.is_told else 0

    async def close(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        await asyncio.gather(self.sample.close(), self.shown.close())

    async def _take(self) -> _Sample:
        at_ms, _ = await self._clock.read_clock(self._keys)
        await self._read_events(at_ms)
        drivers = await self._drivers(at_ms)
        trips = [
            AskedTrip(
                trip.lat, trip.lng, trip.customer_id, trip.status == Status.PENDING,
                is_new=trip.asked_ms > at_ms - _WINDOW_MS,
            )
            for trip in self._trips.values()
        ]  # fmt: skip
        is_told = await self._scripts.begin_heat(self._keys, self._node, every_ms=_TOLD_MS)
        # In a thread: thousands of cells take some ms, which other calls would wait for.
        cells, scarce_cells = await asyncio.to_thread(_for_operators, trips, drivers.free)
        self.samples += 1
        return _Sample(at_ms, cells, scarce_cells, is_told)

    async def _show(self) -> _Shown:
        """What drivers see of the last whole window: on all servers the same."""
        at_ms, _ = await self._clock.read_clock(self._keys)
        window = at_ms // _SHOWN_MS - 1
        kept = await self._scripts.kept_heat(self._keys, window)
        if kept is None:
            made = ShownHeat(at_ms, await self._counts(window, at_ms))
            await self._scripts.keep_heat(self._keys, window, made, for_ms=2 * _SHOWN_MS)
            # Another server may have been first: then its noise is that of the window.
            kept = await self._scripts.kept_heat(self._keys, window)
            if kept is None:
                raise StoreUnavailable("redis has lost the picture that it was given")
        return _Shown(kept.at_ms, await asyncio.to_thread(picture_for_drivers, kept.cells))

    async def _counts(self, window: int, at_ms: int) -> CellCounts:
        await self._read_events(at_ms)
        drivers = await self._drivers(at_ms)
        trips = [
            AskedTrip(trip.lat, trip.lng, trip.customer_id, trip.status == Status.PENDING)
            for trip in self._trips.values()
            if trip.asked_ms // _SHOWN_MS == window
        ]
        self.samples += 1
        return await asyncio.to_thread(counts_for_drivers, trips, drivers.free, drivers.all)

    async def _read_events(self, at_ms: int) -> None:
        async with self._reading:
            if time.monotonic() - self._read_s > STALE_S:
                # Nobody has asked for a while; or the stream may be another one since.
                self._trips.clear()
                self._last_event = f"{at_ms - _WINDOW_MS}-0"
            await self._read_on()
            self._read_s = time.monotonic()
            if self._forgetting is not None:
                self._forgetting.cancel()
            self._forgetting = asyncio.get_running_loop().call_later(STALE_S, self._forget)
        since_ms = at_ms - _WINDOW_MS
        kept = [
            (trip_id, trip)
            for trip_id, trip in self._trips.items()
            if trip.asked_ms > since_ms or trip.status == Status.PENDING
        ]
        self._trips = dict(kept[-_MAX_TRIPS:])

    def _forget(self) -> None:
        # Past this age the trips are read anew, and until then nobody needs them.
        if not self._reading.locked():
            self._trips = {}
            self._read_s = -STALE_S

    async def _read_on(self) -> None:
        for _ in range(_MAX_PAGES):
            page = await self._scripts.events_after(self._keys, self._last_event, _EVENTS_PAGE)
            for event in page:
                self._last_event = event.id
                self._note(event)
            if len(page) < _EVENTS_PAGE:
                break

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

    async def _drivers(self, at_ms: int) -> _Drivers:
        names = await self._scripts.seen_drivers(self._keys, _MAX_DRIVERS)
        drivers = [
            driver
            for driver in await self._scripts.read_drivers(self._keys, names)
            if driver.fix_ms > at_ms - self._fix_age_ms
        ]
        free = [
            (driver.lat, driver.lng)
            for driver in drivers
            if is_free(
                is_online=driver.is_online,
                availability_status=driver.availability_status,
                trip_id=driver.trip_id,
            )
        ]
        return _Drivers([(driver.lat, driver.lng) for driver in drivers], free)


def _for_operators(
    trips: Sequence[AskedTrip], free_drivers: Sequence[Place]
) -> tuple[dict[str, Any], int]:
    heat = HeatMap(trips, free_drivers)
    return heat.for_operators(), heat.scarce_cells()
