"""What a zone's stream of events has told, and what it may lack."""

from __future__ import annotations

from typing import Any, Final

import orjson

from dispatcher.live.keys import Keys
from dispatcher.live.pages import entries
from dispatcher.live.pipeline import Pipeline

_PAGE: Final = 1_000
#: A day and some: no consumer remembers for longer what it has seen.
REMEMBERED_S: Final = 100_000


class EventStream:
    """Reads of the stream for whoever loads a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def last_heard_ms(self, keys: Keys) -> int | None:
        """When the stream got its last event, in ms by Redis' clock; None where it has none."""
        newest = await self._pipeline.command("XREVRANGE", keys.events, "+", "-", "COUNT", 1)
        return int(newest[0][0].partition("-")[0]) if newest else None

    async def keep_unheard_since(self, keys: Keys, since_ms: int | None) -> int | None:
        """Keeps until the zone is loaded since when its stream may lack events. Returns the earlier of
        that and what a load that has broken off has left: what it has told is newer by the stream."""
        if since_ms is not None:
            await self._pipeline.command("SET", keys.unheard_since, since_ms, "NX", "EX", REMEMBERED_S)
        left = await self._pipeline.command("GET", keys.unheard_since)
        with self._pipeline.decoding(keys.unheard_since):
            times = [max(0, int(at)) for at in (left, since_ms) if at is not None]
        return min(times, default=None)

    async def heard_since(self, keys: Keys, since_ms: int) -> set[tuple[str, int]]:
        """The trips and versions of the events that the zone's stream got since then."""
        heard: set[tuple[str, int]] = set()
        after = str(max(0, since_ms))  # Redis refuses a negative id
        async for page in entries(self._pipeline, keys.events, after=after, count=_PAGE):
            for _, fields in page:
                if (trip := _trip_of_entry(fields)) is not None:
                    heard.add(trip)
        return heard


def _trip_of_entry(fields: Any) -> tuple[str, int] | None:
    """The trip and version of an entry of the stream; None where somebody else wrote it."""
    try:
        trip = orjson.loads(fields["event"] if isinstance(fields, dict) else fields[1])["trip"]
        return str(trip["id"]), int(trip["version"])
    except (ValueError, TypeError, KeyError, IndexError):
        return None
