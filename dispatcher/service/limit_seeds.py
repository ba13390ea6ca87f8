"""A Redis that has lost the limits' logs, or was away, is told what each server has admitted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog

from dispatcher.config import Settings
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import SERVER_KEYS, keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.service.local_limits import LocalLimits

log = structlog.get_logger("dispatcher.limits")

#: Logs in one call: some 2 ms of Redis' time.
_MAX_LOGS: Final = 100


class LimitSeeds:
    """Seeds the logs that decide about a zone's calls: its own, and, on one node, the default zone's.

    The server that loads a zone seeds before it ends the load; the others are told when it begins, and
    have seeded by then unless they are slow.
    """

    def __init__(self, local: LocalLimits, scripts: LimitScripts, *, has_one_node: bool) -> None:
        self._local = local
        self._scripts = scripts
        self._has_one_node = has_one_node
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def listening(self, subscriber: Subscriber) -> AsyncIterator[None]:
        """Seeds whenever any server loads a zone."""
        heard = Listener(lambda zone: self._seed_soon(zone.decode()), self._seed_all_soon)
        subscriber.subscribe(SERVER_KEYS.loads, heard)
        try:
            yield
        finally:
            subscriber.unsubscribe(SERVER_KEYS.loads)
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def announce(self, zone: str) -> None:
        """A zone is being loaded: all servers seed what they have admitted."""
        self._scripts.announce_load(zone)

    async def seed(self, zone: str) -> int:
        """Returns how many admissions were added. Raises StoreUnavailable."""
        added = 0
        for kept_by in {zone, DEFAULT_ZONE} if self._has_one_node else {zone}:
            keys = keys_of(kept_by)
            logs = [
                (keys.limit(name, subject), known.window_ms // 1000, list(known.times_ms))
                for name, subject, known in self._local.logs_of(kept_by)
            ]
            for start in range(0, len(logs), _MAX_LOGS):
                added += await self._scripts.seed_limits(logs[start : start + _MAX_LOGS])
        if added:
            log.info("limits seeded", zone=zone, admissions=added)
        return added

    def _seed_all_soon(self) -> None:
        # What was announced while the subscription did not stand was not heard.
        for zone in self._local.zones():
            self._seed_soon(zone)

    def _seed_soon(self, zone: str) -> None:
        if zone not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._try_to_seed(zone))
            self._tasks[zone] = task
            task.add_done_callback(lambda _: self._tasks.pop(zone, None))

    async def _try_to_seed(self, zone: str) -> None:
        try:
            await self.seed(zone)
        except StoreUnavailable as error:
            log.warning("limits not seeded", zone=zone, reason=str(error))


@contextlib.asynccontextmanager
async def open_seeds(
    local: LocalLimits, scripts: LimitScripts, subscriber: Subscriber, settings: Settings
) -> AsyncIterator[LimitSeeds]:
    """The seeds of a server process, which hear of loads until they are closed."""
    seeds = LimitSeeds(local, scripts, has_one_node=not settings.has_redis_cluster)
    async with seeds.listening(subscriber):
        yield seeds
