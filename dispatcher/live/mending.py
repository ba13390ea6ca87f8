"""Mending: what a call to Redis stumbled over is looked into, and dropped where it is not what its key
holds.

A value that is gone is nothing new to a zone: trips, drivers and answers come back from Postgres with
the next call that misses them, and a zone that lacks one of its own keys is loaded anew. So one call is
refused, and the next one finds the zone as it should be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextvars import Context
from typing import Any, Final

import structlog

from dispatcher.core.errors import CorruptState, StoreUnavailable
from dispatcher.live.keys import keys_of
from dispatcher.live.pages import entries, members
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.redis_errors import UNREADABLE
from dispatcher.live.shapes import SHAPES, KeyName, Shape, parse_name

log = structlog.get_logger("dispatcher.mending")

#: Keys that wait to be looked into at most: a call that stumbles again names them again.
_MAX_SUSPECTS: Final = 10_000
_AT_ONCE: Final = 100
#: Members or entries that are read at once.
_PAGE: Final = 1_000


class Mending:
    """Looks into suspicious keys in the background. One for each server process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._suspects: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        #: Values that were dropped, for the metrics.
        self.dropped = 0

    def suspect(self, names: Iterable[str]) -> None:
        """A call failed on these keys: they are looked into soon."""
        for name in names:
            if len(self._suspects) < _MAX_SUSPECTS:
                self._suspects[name] = None
        if self._suspects and self._task is None:
            # Not in the context of this call: the keys are those of others, too.
            self._task = asyncio.create_task(self._work(), context=Context())
            self._task.add_done_callback(self._worked)

    async def close(self) -> None:
        """Leaves the rest to the next call that stumbles."""
        self._suspects.clear()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def find(self, names: Sequence[str], *, deep: bool) -> dict[str, str]:
        """Those of the keys that hold what they should not, with the reason; `deep` reads their content.

        Raises StoreUnavailable.
        """
        found = await asyncio.gather(*(self._fault(name, deep=deep) for name in names))
        return {name: fault for name, fault in zip(names, found, strict=True) if fault}

    async def mend(self, names: Sequence[str]) -> list[str]:
        """Drops what of the keys is not what they hold; returns their names. Raises StoreUnavailable."""
        faults = await self.find(names, deep=True)
        for name, reason in faults.items():
            parts = parse_name(name)
            assert parts is not None
            await self._pipeline.command("UNLINK", name, *_follow(parts))
            self.dropped += 1
            log.warning("value dropped that its key does not hold", key=name, reason=reason)
        return list(faults)

    async def _fault(self, name: str, *, deep: bool) -> str:
        """What is wrong with a key; empty where nothing is, or it is none of ours."""
        parts = parse_name(name)
        if parts is None:
            return ""
        shape, command = SHAPES[parts.kind], self._pipeline.command
        kind: str = await command("TYPE", name)
        if kind not in ("none", shape.type):
            return f"is a {kind} and not a {shape.type}"
        if shape.ends and await command("PTTL", name) == -1:
            return "never ends"
        return await self._unreadable(name, parts.rest, shape) if deep else ""

    async def _unreadable(self, name: str, rest: str, shape: Shape) -> str:
        try:
            content = await self._content(name, shape.type)
            if content and shape.check is not None:
                shape.check(content, rest)
        except (*UNREADABLE, CorruptState) as error:
            return f"cannot be read: {error!r}"
        return ""

    async def _content(self, name: str, kind: str) -> Any:
        """What a key holds; None of what may be long, which is read in pages.

        Raises CorruptState where some of it is no UTF-8.
        """
        command = self._pipeline.command
        match kind:
            case "hash":
                return await command("HGETALL", name)
            case "list":
                return await command("LRANGE", name, 0, -1)
            case "string":
                return await command("GET", name)
            case "set":
                return await command("SMEMBERS", name)
            case "stream":
                pages: AsyncIterator[Any] = entries(self._pipeline, name, count=_PAGE)
            case _:
                pages = members(self._pipeline, name, count=_PAGE)
        async for _ in pages:
            pass
        return None

    async def _work(self) -> None:
        while self._suspects:
            names = list(self._suspects)[:_AT_ONCE]
            try:
                await self.mend(names)
            except StoreUnavailable as error:
                log.warning("suspicious keys not looked into", keys=len(names), reason=str(error))
            for name in names:
                self._suspects.pop(name, None)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            log.error("mending failed", exc_info=error)


def _follow(parts: KeyName) -> list[str]:
    """What has to go with a key, so that it comes back."""
    keys = keys_of(parts.zone)
    if SHAPES[parts.kind].loads_zone:
        return [keys.epoch]
    # The trip is loaded with whom Postgres knows to be barred from it.
    return [keys.trip(parts.rest)] if parts.kind in ("barred", "passed", "offers") else []
