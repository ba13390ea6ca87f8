"""What an operator's map shows of a zone, read from Redis in a few calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.shown_heat import ShownHeat, heat_from_text, heat_to_text

#: Drivers or trips in one script: well under a millisecond of Redis' time, which accepts wait for.
_CHUNK: Final = 200


class SeenDriver(NamedTuple):
    """A driver as a map shows them; the fix is in degrees and in ms since the epoch, 0 without one."""

    driver_id: str
    is_online: bool
    availability_status: str
    trip_id: str
    vehicle_type: str
    lat: float
    lng: float
    fix_ms: int


class OpenWave(NamedTuple):
    """The version of a trip (-1: Redis has none), the number of its last wave (0: none yet), and the
    drivers who hold an open offer of it."""

    version: int
    wave: int
    drivers: list[str]


class ZoneNumbers(NamedTuple):
    """How many trips wait for a driver, drivers may be offered one, and drivers have a fix."""

    waiting_trips: int
    free_drivers: int
    drivers_with_fix: int


class ZoneEvent(NamedTuple):
    """An entry of the zone's stream: its id there, and the event as `service.messages` made it; empty
    where somebody else wrote the entry."""

    id: str
    event: dict[str, Any]


class ZoneViewScripts:
    """Reads of a whole zone, in pieces that no accept waits long for. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def numbers(self, keys: Keys) -> ZoneNumbers:
        """The zone in figures; a driver whose fix has become stale counts until the next sweep."""
        vehicle_types: list[str] = await self._pipeline.command("SMEMBERS", keys.vehicles)
        waiting, seen, *free = await asyncio.gather(
            self._pipeline.command("ZCARD", keys.waves),
            self._pipeline.command("ZCARD", keys.seen),
            *(self._pipeline.command("ZCARD", keys.geo(each)) for each in vehicle_types),
        )
        return ZoneNumbers(waiting, sum(free), seen)

    async def seen_drivers(self, keys: Keys, max_drivers: int) -> list[str]:
        """The drivers with a fix that counts, the latest first."""
        seen: list[str] = await self._pipeline.command("ZRANGE", keys.seen, 0, max_drivers - 1, "REV")
        return seen

    async def read_drivers(self, keys: Keys, driver_ids: Sequence[str]) -> list[SeenDriver]:
        """Several drivers; one whom Redis does not know is offline."""
        replies = await asyncio.gather(
            *(
                self._pipeline.run("read_drivers", [keys.driver(name) for name in chunk], ())
                for chunk in _chunks(driver_ids)
            )
        )
        with self._pipeline.decoding(*(keys.driver(name) for name in driver_ids)):
            return _seen_drivers(driver_ids, replies)

    async def read_waves(self, keys: Keys, trip_ids: Sequence[str]) -> dict[str, OpenWave]:
        """The waves and open offers of several trips, by trip."""
        replies = await asyncio.gather(
            *(
                self._pipeline.run(
                    "read_waves",
                    [name for trip in chunk for name in (keys.trip(trip), keys.offers(trip))],
                    (),
                )
                for chunk in _chunks(trip_ids)
            )
        )
        with self._pipeline.decoding(*(keys.trip(trip) for trip in trip_ids)):
            waves = [OpenWave(*wave) for wave in chain.from_iterable(replies)]
            return dict(zip(trip_ids, waves, strict=True))

    async def begin_heat(self, keys: Keys, node: str, *, every_ms: int) -> bool:
        """Whether this server is the one that tells of the zone's heat: it stays so while it samples."""
        won: Any = await self._pipeline.command("SET", keys.heat_look, node, "NX", "PX", every_ms)
        if not won and await self._pipeline.command("GET", keys.heat_look) == node:
            won = await self._pipeline.command("SET", keys.heat_look, node, "XX", "PX", every_ms)
        return bool(won)

    async def keep_heat(self, keys: Keys, window: int, shown: ShownHeat, *, for_ms: int) -> None:
        """Keeps what drivers are shown of a window of time, unless another server has."""
        text = heat_to_text(shown)
        await self._pipeline.command("SET", keys.heat(window), text, "NX", "PX", for_ms)

    async def kept_heat(self, keys: Keys, window: int) -> ShownHeat | None:
        """What was kept, if anything was."""
        text = await self._pipeline.command("GET", keys.heat(window))
        with self._pipeline.decoding(keys.heat(window)):
            return None if text is None else heat_from_text(text)

    async def newest_event(self, keys: Keys) -> str:
        """The id of the zone's newest event; `0-0` where there is none."""
        newest = await self._pipeline.command("XREVRANGE", keys.events, "+", "-", "COUNT", 1)
        return str(newest[0][0]) if newest else "0-0"

    async def events_after(self, keys: Keys, after: str, max_events: int) -> list[ZoneEvent]:
        """The events that the zone's stream got after the one of that id, the oldest first."""
        found = await self._pipeline.command(
            "XRANGE", keys.events, f"({after}", "+", "COUNT", max_events
        )
        return [ZoneEvent(id_, _event_of(fields)) for id_, fields in found]


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]


def _seen_drivers(driver_ids: Sequence[str], replies: Sequence[Any]) -> list[SeenDriver]:
    return [
        SeenDriver(name, online == "1", status, trip, vehicle, float(lat or 0), float(lng or 0),
                   int(fix_ms or 0))
        for name, (online, status, trip, vehicle, lat, lng, fix_ms)
        in zip(driver_ids, chain.from_iterable(replies), strict=True)
    ]  # fmt: skip


def _event_of(fields: Any) -> dict[str, Any]:
    try:
        event = orjson.loads(fields["event"] if isinstance(fields, dict) else fields[1])
    except (ValueError, KeyError, IndexError):
        return {}
    return event if isinstance(event, dict) else {}
