"""Tells the servers of a user's sockets in which zone something is about to happen to that user.

What happens is told on channels of the zone, by the very scripts that make it so. Those servers have to
listen there, and know of it by the user's home channel, which no zone has to be known for.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.keys import Keys, home_channel
from dispatcher.live.pipeline import Pipeline

log = structlog.get_logger("dispatcher.pubsub")

#: What is announced does not wait for longer than this for the home channel's node.
_MAX_WAIT_S: Final = 0.5
#: A node that does not take it is asked again: this often at most, with rests that double.
_MAX_TRIES: Final = 12
_FIRST_REST_S: Final = 0.05
_MAX_REST_S: Final = 5.0
#: Announcements that are tried again at once; the rest is left to the next snapshot.
_MAX_RETRIES: Final = 10_000


class Announcement(NamedTuple):
    """In this zone something happens to a user; `frame` (JSON, or empty) is what they are told of it."""

    zone: str
    frame: bytes

    @classmethod
    def read(cls, payload: bytes) -> Announcement:
        """Reads one. Raises ValueError, LookupError or TypeError where it is none."""
        zone, frame = orjson.loads(payload)
        return cls(str(zone), orjson.dumps(frame) if frame else b"")


class Announcements:
    """Sends them. One for each server process."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._retries: set[asyncio.Task[None]] = set()

    def announce(self, keys: Keys, address: str, frame: str = "") -> asyncio.Task[None] | None:
        """Announces to a user's servers what is to be done in a zone now.

        None where that comes after it by itself, since both go to the same node; else what is to be
        waited for: it never fails, and takes half a second at most.
        """
        channel = home_channel(address)
        payload = orjson.dumps([keys.zone, orjson.Fragment(frame) if frame else None])
        reply = self._pipeline.command("SPUBLISH", channel, payload)
        reply.add_done_callback(lambda done: self._told(done, channel, payload))
        if self._pipeline.node_of(channel) == self._pipeline.node_of(keys.epoch):
            return None
        return asyncio.get_running_loop().create_task(_wait(reply))

    async def close(self) -> None:
        """Tries no more."""
        for task in list(self._retries):
            task.cancel()
        await asyncio.gather(*self._retries, return_exceptions=True)

    def _told(self, reply: asyncio.Future[Any], channel: str, payload: bytes) -> None:
        if reply.cancelled() or reply.exception() is None:
            return
        if len(self._retries) >= _MAX_RETRIES:
            log.warning("not announced", channel=channel, reason=str(reply.exception()))
            return
        task = asyncio.get_running_loop().create_task(self._retry(channel, payload))
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    async def _retry(self, channel: str, payload: bytes) -> None:
        rest_s, reason = _FIRST_REST_S, ""
        for _ in range(_MAX_TRIES):
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, _MAX_REST_S)
            try:
                await self._pipeline.command("SPUBLISH", channel, payload)
            except StoreUnavailable as error:
                reason = str(error)
            else:
                return
        # Whoever listens there has lost the link to that node as well, and reads a snapshot after it.
        log.warning("not announced", channel=channel, reason=reason)


async def _wait(reply: asyncio.Future[Any]) -> None:
    await asyncio.wait([reply], timeout=_MAX_WAIT_S)
