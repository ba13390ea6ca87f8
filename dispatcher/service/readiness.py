"""Whether this server can decide: it tries what an accept needs, and says why not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.state import StateScripts
from dispatcher.observe.series import ENGINE_PROBE_SECONDS
from dispatcher.service.authorities import Authorities

#: A balancer that asks each second is answered within it.
_TIMEOUT_S: Final = 0.8
#: Redis' codes, in words.
_REASONS: Final = {
    "BUSY": "busy",
    "CLUSTERDOWN": "cluster_down",
    "LOADING": "loading",
    "MASTERDOWN": "no_primary",
    "MISCONF": "cannot_save",
    "NOPERM": "not_permitted",
    "NOREPLICAS": "too_few_replicas",
    "OOM": "out_of_memory",
    "READONLY": "read_only",
}
_POSTGRES_REASONS: Final = ("read_only", "locked", "no_schema")
_OK: Final = "ok"
#: Zones that are named at most.
_MAX_NAMED: Final = 100


class Readiness:
    """Asks both engines at once. A question that is not answered yet is not asked again."""

    def __init__(
        self,
        *,
        zones: Zones,
        state: StateScripts,
        database: Database,
        authorities: Authorities,
        stop: asyncio.Event,
    ) -> None:
        self._authorities = authorities
        self._zones = zones
        self._state = state
        self._database = database
        self._stop = stop
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def check(self) -> tuple[bool, dict[str, Any]]:
        """Whether this server can decide, with the state of each engine: ok, or why not.

        Takes a second at most, whatever the engines do.
        """
        redis, postgres = await asyncio.gather(
            self._ask("redis", self._redis), self._ask("postgres", self._postgres)
        )
        is_stopping = self._stop.is_set()
        # Postgres alone decides where Redis is away; where that is about to be found out, too.
        is_ready = postgres == _OK and not is_stopping
        degraded = sorted(self._authorities.degraded())
        status = "not ready"
        if is_ready:
            status = "ready" if redis == _OK and not degraded else "degraded"
        details = {"redis": redis, "postgres": postgres, "stopping": is_stopping}
        return is_ready, {"status": status, **details, "degraded_zones": degraded[:_MAX_NAMED]}

    async def close(self) -> None:
        """Gives up what is not answered."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, engine: str, check: Callable[[], Awaitable[str]]) -> str:
        began_s = time.perf_counter()
        task = self._asking.get(engine)
        if task is None or task.done():
            task = self._asking[engine] = asyncio.ensure_future(check())
        # The question itself is not cancelled: a goodbye to a silent engine takes longer than a second.
        done, _ = await asyncio.wait((task,), timeout=_TIMEOUT_S)
        ENGINE_PROBE_SECONDS.of(engine).observe(time.perf_counter() - began_s)
        return task.result() if done else "silent"

    async def _redis(self) -> str:
        # Each zone may be on another node.
        # One zone of each node says what is so of all of them.
        one_each = {self._state.node_of(keys_of(zone)): zone for zone in self._zones.names()}
        checks = (self._state.check_writable(keys_of(zone)) for zone in one_each.values())
        for error in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(error, StoreUnavailable):
                return _REASONS.get(str(error).partition(" ")[0], "away")
            if error is not None:
                raise error
        return _OK

    async def _postgres(self) -> str:
        try:
            await self._database.check_writable()
        except StoreUnavailable as error:
            return str(error) if str(error) in _POSTGRES_REASONS else "away"
        return _OK
