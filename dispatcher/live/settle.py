"""Settles that arrive together travel together: mostly those of one committed batch.

One call of a script then stands for many, in this process and in Redis, and one message on the push
channel for many. Nothing waits on purpose: a batch leaves at the end of its turn of the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.scripts import Attempt, Scripts, Settlement

#: A batch this large keeps Redis busy for half a millisecond; more would only delay others.
_MOST: Final = 16


@dataclass(slots=True)
class _Batch:
    keys: Keys
    changes: list[tuple[Attempt, Settlement]] = field(default_factory=list)
    results: list[asyncio.Future[int]] = field(default_factory=list)
    trips: set[str] = field(default_factory=set)
    drivers: set[str] = field(default_factory=set)

    def answered(self, reply: asyncio.Future[list[int | str]]) -> None:
        """Hands out what the script said of each change."""
        if reply.cancelled():
            results: list[int | str] = ["cancelled"] * len(self.changes)
        elif error := reply.exception():
            results = [str(error)] * len(self.changes)
        else:
            results = reply.result()
        for waiting, result in zip(self.results, results, strict=True):
            if waiting.done():  # its caller was cancelled
                continue
            if isinstance(result, str):
                waiting.set_exception(StoreUnavailable(result))
            else:
                waiting.set_result(result)


class Settler:
    """Gathers the settles of each zone. One for each server process."""

    def __init__(self, scripts: Scripts, pipeline: Pipeline, *, fix_age_s: int) -> None:
        self._scripts = scripts
        self._pipeline = pipeline
        self._fix_age_ms = fix_age_s * 1000
        self._filling: dict[str, _Batch] = {}

    async def settle(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> bool:
        """Writes what was committed and drops the claims. Says whether the trip was written.

        Raises StoreUnavailable where Redis did not do it. It goes on where the caller is cancelled.
        """
        result = await self._join(keys, attempt, settlement)
        if result < 0:
            # The picture missed a change: what differs is not enough.
            result = await self._join(keys, attempt, replace(settlement, before=None))
        return result == 1

    def close(self) -> None:
        """Sends what waits, to be answered until the pipeline is closed."""
        for batch in list(self._filling.values()):
            self._send(batch)

    def _join(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> asyncio.Future[int]:
        trip_id, driver_id = attempt.trip_id, settlement.driver_id
        batch = self._filling.get(keys.zone)
        if batch is not None and (trip_id in batch.trips or driver_id in batch.drivers):
            # The script does some of its work for the whole batch at once, so order would be lost.
            self._send(batch)
            batch = None
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._filling[keys.zone] = _Batch(keys)
            loop.call_soon(self._end_turn, batch)
        if trip_id:
            batch.trips.add(trip_id)
        if driver_id:
            batch.drivers.add(driver_id)
        result: asyncio.Future[int] = loop.create_future()
        batch.changes.append((attempt, settlement))
        batch.results.append(result)
        if len(batch.changes) == _MOST:
            self._send(batch)
        return result

    def _end_turn(self, batch: _Batch) -> None:
        if self._filling.get(batch.keys.zone) is batch:
            self._send(batch)
            self._pipeline.flush()  # everything of this turn has been gathered

    def _send(self, batch: _Batch) -> None:
        del self._filling[batch.keys.zone]
        reply = self._scripts.settle_changes(batch.keys, batch.changes, fix_age_ms=self._fix_age_ms)
        reply.add_done_callback(batch.answered)
