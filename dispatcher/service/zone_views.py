"""Live views of zones for operators: one sampler a watched zone and process, however many watch.

A sampler starts with the first viewer of its zone and stops with the last one, so that it costs
nothing when nobody watches. What a sample reads and what a frame says are bounded, whatever the zone
holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog

from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.times import now_ms
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.observe.series import REFUSALS
from dispatcher.service.authorities import Authorities
from dispatcher.service.zone_picture import Moments, ZonePicture

log = structlog.get_logger("dispatcher.zone_views")

#: Between two samples: a position that is a second old is as good as new on a map.
_SAMPLE_S: Final = 1.0
#: Between two looks at Postgres: what the stream has not told, drift, and health of both engines.
_LOOK_S: Final = 10.0
#: The same while Postgres alone knows what has changed.
_LOOK_WITHOUT_REDIS_S: Final = 2.0
#: Most of each kind in a view. A map with more shows no one anything.
_MAX_DRIVERS: Final = 5_000
_MAX_TRIPS: Final = 2_000
_MAX_EVENTS: Final = 2_000
#: Trips that Redis and Postgres disagree on for longer than this have drifted: no settle takes as long.
_SETTLED: Final = timedelta(seconds=3)
_LIMITED: Final = ("rate_limit_exceeded",)

#: Whether the server can decide, and the state of each engine (service.readiness).
Health = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]


class Viewer(Protocol):
    """A socket that watches a zone."""

    def show(self, frame: bytes) -> bool:
        """Takes a frame without waiting; False where the one before has not been sent yet."""


class ZoneViews:
    """Who watches which zone."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: ZoneViewScripts,
        database: Database,
        authorities: Authorities,
        health: Health,
        fix_age_s: int,
        sample_s: float = _SAMPLE_S,
    ) -> None:
        self._zones = zones
        self._scripts = scripts
        self._database = database
        self._authorities = authorities
        self._health = health
        self._fix_age_ms = fix_age_s * 1000
        self._sample_s = sample_s
        self._samplers: dict[str, ZoneSampler] = {}

    def watch(self, zone: str, viewer: Viewer) -> None:
        """From now on the viewer is shown this zone, and no other. Raises Refusal invalid_zone."""
        if self._zones.get(zone) is None:
            raise Refusal("invalid_zone")
        self.unwatch(viewer)
        sampler = self._samplers.get(zone)
        if sampler is None:
            sampler = self._samplers[zone] = ZoneSampler(
                zone, self._scripts, self._database, self._authorities, self._health,
                fix_age_ms=self._fix_age_ms, sample_s=self._sample_s,
            )  # fmt: skip
        sampler.add(viewer)

    def unwatch(self, viewer: Viewer) -> None:
        """The viewer watches nothing any more."""
        for zone, sampler in list(self._samplers.items()):
            if sampler.discard(viewer):
                del self._samplers[zone]

    def viewers(self) -> int:
        """How many watch."""
        return sum(len(sampler) for sampler in self._samplers.values())

    async def close(self) -> None:
        """Stops all samplers."""
        samplers, self._samplers = list(self._samplers.values()), {}
        await asyncio.gather(*(sampler.stop() for sampler in samplers))


class ZoneSampler:
    """Samples a zone, and shows its viewers what has changed; a new one, and one that could not take
    a frame, the whole picture."""

    def __init__(
        self,
        zone: str,
        scripts: ZoneViewScripts,
        database: Database,
        authorities: Authorities,
        health: Health,
        *,
        fix_age_ms: int,
        sample_s: float,
    ) -> None:
        self._keys = keys_of(zone)
        self._scripts = scripts
        self._database = database
        self._authorities = authorities
        self._health = health
        self._sample_s = sample_s
        #: When the picture was last sampled, in ms since the epoch; None: never.
        self._sampled_ms: int | None = None
        self._picture = ZonePicture(zone, fix_age_ms)
        #: Viewers, and whether they have the picture as it was at the last frame.
        self._viewers: dict[Viewer, bool] = {}
        self._joined = asyncio.Event()
        self._last_event = ""
        self._looked_s = float("-inf")
        self._engines: dict[str, Any] = {}
        self._latency_ms: dict[str, float] = {}
        self._drift = 0
        self._refusals = dict(REFUSALS.numbers)
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, viewer: Viewer) -> None:
        """Shows it the zone as soon as it is sampled."""
        self._viewers[viewer] = False
        self._joined.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def discard(self, viewer: Viewer) -> bool:
        """Whether nobody watches any more: the sampler has stopped."""
        self._viewers.pop(viewer, None)
        if not self._viewers and self._task is not None:
            self._task.cancel()
        return not self._viewers

    async def stop(self) -> None:
        """Ends the sampling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            started_s = time.monotonic()
            self._joined.clear()
            try:
                await self._try_sample(started_s)
                self._show(time.monotonic())
            except Exception:
                log.exception("zone not shown", zone=self._keys.zone)
            await self._rest(started_s + self._sample_s)

    async def _try_sample(self, now_s: float) -> None:
        """Where an engine is away, the picture stays as it was, says of when it is, and the figures say
        which one is away. Trips are those of Postgres while that decides alone."""
        zone = self._keys.zone
        try:
            if self._authorities.of(zone).is_degraded:
                await self._do_without_redis(now_s)
            else:
                await self._sample(now_s)
                self._sampled_ms = now_ms()
        except StoreUnavailable as error:
            log.info("zone not sampled", zone=zone, reason=str(error))
            self._last_event = ""  # what happens meanwhile is asked of Postgres
            with contextlib.suppress(StoreUnavailable):
                await self._authorities.has_left_redis(zone)
            await self._ask_health()

    async def _do_without_redis(self, now_s: float) -> None:
        # What Redis holds is old, also where this server reaches it.
        self._last_event = ""
        if now_s - self._looked_s >= _LOOK_WITHOUT_REDIS_S:
            self._looked_s = now_s
            await self._look_at_postgres()
            self._drift = 0  # Redis is not expected to agree
            await self._ask_health()

    async def _rest(self, until_s: float) -> None:
        """Waits for the next sample; who joins meanwhile is shown the last one at once."""
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._joined.wait()
            except TimeoutError:
                return
            self._joined.clear()
            self._show_newcomers()

    async def _sample(self, now_s: float) -> None:
        keys, scripts, picture = self._keys, self._scripts, self._picture
        if not self._last_event:
            self._last_event = await scripts.newest_event(keys)
            self._looked_s = float("-inf")
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            await self._look()
        for event in await scripts.events_after(keys, self._last_event, _MAX_EVENTS):
            self._last_event = event.id
            try:
                picture.take_event(event, now_s)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("no event, and left out", zone=keys.zone, id=event.id, reason=repr(error))
        waves, seen = await asyncio.gather(
            scripts.read_waves(keys, picture.waiting(_MAX_TRIPS)),
            scripts.seen_drivers(keys, _MAX_DRIVERS),
        )
        picture.take_waves(waves)
        # A driver whose fix has become too old is seen no more, and still there.
        names = dict.fromkeys((*seen, *picture.drivers_with_trip(), *picture.drivers))
        drivers = await scripts.read_drivers(keys, list(names)[:_MAX_DRIVERS])
        picture.take_drivers(drivers, now_ms())

    async def _look(self) -> None:
        """Looks at Postgres for what Redis may not tell, and at the health of both."""
        trips = await self._look_at_postgres()
        asked_s = time.perf_counter()
        waves = await self._scripts.read_waves(self._keys, [trip.id for trip in trips])
        self._latency_ms["redis_ms"] = _lapse_ms(asked_s)
        settled_ms = now_ms() - _SETTLED // timedelta(milliseconds=1)
        self._drift = sum(
            waves[trip.id].version < trip.version and trip.updated_at < settled_ms for trip in trips
        )
        await self._ask_health()

    async def _look_at_postgres(self) -> list[Trip]:
        """Takes the live trips that Postgres has into the picture, and returns them."""
        asked_s = time.perf_counter()
        rows = await self._database.rows(
            "live_trips_of_zone", zone=self._keys.zone, after="", page_size=_MAX_TRIPS
        )
        self._latency_ms["postgres_ms"] = _lapse_ms(asked_s)
        trips = [trip_from_row(row) for row in rows]
        self._picture.take_trips((t.to_json() for t in trips), is_all=len(trips) < _MAX_TRIPS)
        return trips

    async def _ask_health(self) -> None:
        _, details = await self._health()
        self._engines = {name: details[name] for name in ("redis", "postgres") if name in details}

    def _figures(self, now_s: float) -> dict[str, Any]:
        """The picture's figures, and those of this server process."""
        counts, before = REFUSALS.numbers, self._refusals
        limited = counts[_LIMITED] - before.get(_LIMITED, 0)
        refused = counts.total() - sum(before.values()) - limited
        return {
            **self._picture.figures(now_s),
            "refused": refused,
            "limited": limited,
            "drift": self._drift,
            "engines": self._engines | self._latency_ms,
        }

    def _moments(self) -> Moments:
        engine = self._authorities.of(self._keys.zone).engine
        return Moments(now_ms(), self._sampled_ms, engine.value)

    def _show(self, now_s: float) -> None:
        changes = self._picture.changes_frame(self._moments(), self._figures(now_s))
        for viewer, has_picture in self._viewers.items():
            if has_picture:
                self._viewers[viewer] = viewer.show(changes)
        self._show_newcomers()

    def _show_newcomers(self) -> None:
        """The whole picture for those who have none, encoded once."""
        newcomers = [viewer for viewer, has_picture in self._viewers.items() if not has_picture]
        if newcomers:
            frame = self._picture.full_frame(self._moments(), self._figures(time.monotonic()))
            for viewer in newcomers:
                self._viewers[viewer] = viewer.show(frame)


def _lapse_ms(since_s: float) -> float:
    return round((time.perf_counter() - since_s) * 1e3, 1)
