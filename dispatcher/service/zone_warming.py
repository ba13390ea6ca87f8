"""Which zones are being loaded by this server, in whose turn, and which are cold."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from dispatcher.core.authority import Authority
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import now_ms
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.state import StateScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.limit_seeds import LimitSeeds
from dispatcher.service.load_gate import LoadGate

log = structlog.get_logger("dispatcher.rehydration")

#: How long a request waits for another server that loads its zone, and how often it looks.
_MAX_WAIT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.02
_MAX_LOOK_AGAIN_S: Final = 0.25
#: How often the logs of a zone that stays cold are seeded.
_BEGIN_AGAIN_S: Final = 1.0

#: Loads a zone: its keys, the token of this loading, the run id of its Redis, and who decides.
Load = Callable[[Keys, str, str, Authority], Awaitable[None]]


class ZoneWarming:
    """One loading a zone and server. All raise StoreUnavailable."""

    def __init__(
        self, state: StateScripts, authorities: Authorities, limit_seeds: LimitSeeds, load: Load
    ) -> None:
        self._state = state
        self._authorities = authorities
        self._limit_seeds = limit_seeds
        self._load = load
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gate = LoadGate()
        # When it was begun last, and the task that did.
        self._begun: dict[str, tuple[float, asyncio.Task[None]]] = {}

    async def warm(self, zone: str) -> None:
        """Loads a cold zone, or waits for the server that is loading it: a request waits for it."""
        self._gate.urge(zone)
        await asyncio.shield(self._warm_once(zone))

    async def begin(self, zone: str) -> None:
        """Seeds the logs of a cold zone and begins its load; those who ask within a second share it."""
        now = time.monotonic()
        at, task = self._begun.get(zone, (0.0, None))
        if task is None or (task.done() and now - at > _BEGIN_AGAIN_S):
            task = asyncio.create_task(self._begin(zone))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._begun[zone] = now, task
        await asyncio.shield(task)

    async def _begin(self, zone: str) -> None:
        self._limit_seeds.announce(zone)
        await self._limit_seeds.seed(zone)
        await self.check_epoch(zone)

    async def warm_all(self, zones: Sequence[str]) -> None:
        """Loads those of the zones that are cold, some at once. One whose node of a cluster is away is
        loaded once it is back; raises where that is so for all of them."""
        loads = (asyncio.shield(self._warm_once(zone)) for zone in zones)
        errors = [end for end in await asyncio.gather(*loads, return_exceptions=True) if end is not None]
        for error in errors:
            if not isinstance(error, StoreUnavailable) or len(errors) == len(zones):
                raise error

    async def rebuild(self, zone: str) -> None:
        """Makes a zone cold and loads it anew."""
        keys, began_ms = keys_of(zone), now_ms()
        await self._state.mark_cold(keys, "")  # loaded into no Redis that there is
        while True:
            await self.warm(zone)
            epoch = await self._state.read_epoch(keys)
            if epoch is not None and epoch.loaded_ms >= began_ms:
                return
            # A loading that had begun before has ended meanwhile.
            await self._state.mark_cold(keys, "")

    async def check_epoch(self, zone: str) -> bool:
        """Whether the zone is loaded into the Redis that answers; else its loading begins."""
        keys = keys_of(zone)
        if self._authorities.of(zone).is_degraded:
            return False
        if not await self._state.mark_cold(keys, await self._state.run_id(keys)):
            return True
        self._warm_once(zone)
        return False

    async def close(self) -> None:
        """Waits until no zone is being loaded by this server."""
        # What has begun may find a zone cold, and load it.
        begun = [task for _, task in self._begun.values()]
        await asyncio.gather(*begun, return_exceptions=True)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _warm_once(self, zone: str) -> asyncio.Task[None]:
        task = self._tasks.get(zone)
        if task is None:
            task = asyncio.create_task(self._warm_in_turn(keys_of(zone)))
            self._tasks[zone] = task
            task.add_done_callback(lambda done: self._warmed(zone, done))
        return task

    def _warmed(self, zone: str, task: asyncio.Task[None]) -> None:
        del self._tasks[zone]
        self._gate.forget(zone)
        if not task.cancelled() and (error := task.exception()):
            log.warning("zone is not loaded", zone=zone, reason=repr(error))

    async def _warm_in_turn(self, keys: Keys) -> None:
        if await self._state.mark_cold(keys, await self._state.run_id(keys)):
            async with self._gate.entered(keys.zone):
                await self._warm(keys)

    async def _warm(self, keys: Keys) -> None:
        token = secrets.token_hex(8)
        wait_s, give_up, waited = _LOOK_AGAIN_S, time.monotonic() + _MAX_WAIT_S, False
        while True:
            run_id = await self._state.run_id(keys)
            if not await self._state.mark_cold(keys, run_id):
                if waited:  # who has loaded it knows what it has admitted itself
                    await self._limit_seeds.seed(keys.zone)
                return
            authority = await self._authorities.read(keys.zone)
            if authority.is_degraded:
                raise StoreUnavailable(f"postgres decides about zone {keys.zone}")
            if await self._state.begin_loading(keys, token):
                try:
                    # Another server may have come to the end of it meanwhile.
                    if await self._state.mark_cold(keys, run_id):
                        await self._load(keys, token, run_id, authority)
                finally:
                    with contextlib.suppress(StoreUnavailable):
                        await self._state.end_loading(keys, token)
                continue  # the lock may have been lost, or Redis replaced once more
            if time.monotonic() > give_up:
                raise StoreUnavailable(f"zone {keys.zone} is being loaded")
            await asyncio.sleep(wait_s)
            wait_s, waited = min(2 * wait_s, _MAX_LOOK_AGAIN_S), True
