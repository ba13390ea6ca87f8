"""Settles that arrive together travel together: mostly those of one committed batch.

One call of a script then stands for many, in this process and in Redis, and one message on the push
channel for many. Nothing waits on purpose: a batch leaves at the end of its turn of the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from redis.exceptions import ResponseError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.store.keys import Keys
from dispatcher.store.scripts import Attempt, Scripts, Settlement

log = structlog.get_logger("dispatcher.settler")

#: A batch this large keeps Redis busy for half a millisecond; more would only delay others.
_MOST: Final = 16


@dataclass(slots=True)
class _Batch:
    keys: Keys
    changes: list[tuple[Attempt, Settlement]] = field(default_factory=list)
    results: list[asyncio.Future[int]] = field(default_factory=list)
    trips: set[str] = field(default_factory=set)
    drivers: set[str] = field(default_factory=set)


class Settler:
    """Gathers the settles of each zone. One for each server process."""

    def __init__(self, scripts: Scripts, *, fix_age_s: int) -> None:
        self._scripts = scripts
        self._fix_age_ms = fix_age_s * 1000
        self._filling: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> bool:
        """Writes what was committed and drops the claims. Says whether the trip was written.

        Raises StoreUnavailable where Redis did not do it. It goes on where the caller is cancelled.
        """
        result = await self._join(keys, attempt, settlement)
        if result < 0:
            # The picture missed a change: what differs is not enough.
            result = await self._join(keys, attempt, replace(settlement, before=None))
        return result == 1

    async def close(self) -> None:
        """Waits for what is on its way."""
        for batch in list(self._filling.values()):
            self._leave(batch)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _join(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> asyncio.Future[int]:
        trip_id = settlement.trip.id if settlement.trip else attempt.trip_id
        driver_id = settlement.driver_id
        batch = self._filling.get(keys.zone)
        if batch is not None and (trip_id in batch.trips or driver_id in batch.drivers):
            # The script does some of its work for the whole batch at once, so order would be lost.
            self._leave(batch)
            batch = None
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._filling[keys.zone] = _Batch(keys)
            loop.call_soon(self._leave, batch)
        if trip_id:
            batch.trips.add(trip_id)
        if driver_id:
            batch.drivers.add(driver_id)
        result: asyncio.Future[int] = loop.create_future()
        batch.changes.append((attempt, settlement))
        batch.results.append(result)
        if len(batch.changes) == _MOST:
            self._leave(batch)
        return result

    def _leave(self, batch: _Batch) -> None:
        if self._filling.get(batch.keys.zone) is not batch:
            return  # it left before the end of the turn
        del self._filling[batch.keys.zone]
        task = asyncio.get_running_loop().create_task(self._send(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: _Batch) -> None:
        results: list[int | str]
        try:
            results = await self._scripts.settle_changes(
                batch.keys, batch.changes, fix_age_ms=self._fix_age_ms
            )
        except (StoreUnavailable, ResponseError) as error:
            results = [str(error)] * len(batch.changes)
        for (attempt, _), waiting, result in zip(batch.changes, batch.results, results, strict=True):
            if isinstance(result, str):
                log.error("settle failed", reason=result, trip=attempt.trip_id, token=attempt.token)
            if waiting.done():
                continue
            if isinstance(result, str):
                waiting.set_exception(StoreUnavailable("redis"))
            else:
                waiting.set_result(result)
