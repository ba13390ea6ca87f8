"""Settle: Redis and the sockets learn what Postgres has committed.

Settles that arrive together, mostly those of one committed batch, travel together: one call of a
script then stands for many, in this process and in Redis, and one message on the push channel for
many. Nothing waits on purpose: a batch leaves at the end of its turn of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import orjson

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import StoredAnswer
from dispatcher.core.trips import FINAL, Status, Trip
from dispatcher.live.announcements import Announcements
from dispatcher.live.claims import NOBODY, Attempt
from dispatcher.live.hashes import driver_fields
from dispatcher.live.idempotency import done_record
from dispatcher.live.keys import Keys, names_of_driver, names_of_trip, names_of_zone
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.publisher import Publisher
from dispatcher.live.redis_errors import is_corrupt
from dispatcher.live.settlement import Settlement
from dispatcher.live.state import FINISHED_TTL_S
from dispatcher.observe.series import SETTLE_BATCH_CHANGES

T = TypeVar("T")

#: A batch this large keeps Redis busy for half a millisecond; more would only delay others.
_MAX_BATCH: Final = 16
#: Events that a zone's stream keeps, about: lua/settle_changes.lua has the same.
EVENTS_KEPT: Final = 100_000


#: What the script says of a change: see the header of `settle_changes`.
SettleResult = int | str | list[Any]


@dataclass(slots=True)
class _Batch:
    keys: Keys
    changes: list[tuple[Attempt, Settlement, StoredAnswer | None]] = field(default_factory=list)
    results: list[asyncio.Future[int | list[Any]]] = field(default_factory=list)
    trips: set[str] = field(default_factory=set)
    drivers: set[str] = field(default_factory=set)

    def answered(self, reply: asyncio.Future[list[SettleResult]]) -> None:
        """Hands out what the script said of each change."""
        if reply.cancelled():
            results: list[SettleResult] = ["cancelled"] * len(self.changes)
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

    def __init__(
        self, pipeline: Pipeline, *, fix_age_s: int, announcements: Announcements | None = None
    ) -> None:
        announcements = announcements or Announcements(pipeline)
        self._pipeline = pipeline
        self._fix_age_ms = fix_age_s * 1000
        self._filling: dict[str, _Batch] = {}
        self._withdrawn: list[Callable[[str, Sequence[str], int], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._announcements = announcements
        self._publisher = Publisher(pipeline)

    async def settle(
        self,
        keys: Keys,
        attempt: Attempt,
        settlement: Settlement,
        answer: StoredAnswer | None = None,
    ) -> bool:
        """Writes what was committed and drops the claims. Says whether the trip was written.

        Raises StoreUnavailable where Redis did not do it. It goes on where the caller is cancelled.
        """
        announced = None
        if settlement.arrives:
            announced = self._announcements.announce(keys, settlement.arrives, settlement.first_frame)
        if announced is None:
            result = await self._join(keys, attempt, settlement, answer)
        else:
            joined = self._join_after(announced, keys, attempt, settlement, answer)
            result = await asyncio.shield(self._spawn(joined))
        if result == -1:
            # The live state missed a change: what differs is not enough.
            result = await self._join(keys, attempt, replace(settlement, before=None), answer)
        if isinstance(result, list):
            result, at_ms, *others = result
            for withdrawn in self._withdrawn:
                withdrawn(settlement.driver_id, others, at_ms)
            # The answer does not wait for what makes room for other drivers.
            self._spawn(self.withdraw_offers(keys, settlement.driver_id, others))
        return result == 1

    async def tell(self, keys: Keys, settlement: Settlement) -> None:
        """Tells stream and sockets alone of a change, while Postgres decides without Redis.

        Raises StoreUnavailable.
        """
        if settlement.arrives:
            announced = self._announcements.announce(keys, settlement.arrives, settlement.first_frame)
            if announced is not None:
                await announced
        await self._publisher.publish(keys.zone, settlement.messages)
        # Last: what the stream has is not told again.
        await self._pipeline.command(
            "XADD", keys.events, "MAXLEN", "~", EVENTS_KEPT, "*", "event", settlement.event
        )

    async def _join_after(
        self,
        announced: asyncio.Task[None],
        keys: Keys,
        attempt: Attempt,
        settlement: Settlement,
        answer: StoredAnswer | None,
    ) -> int | list[Any]:
        await announced
        return await self._join(keys, attempt, settlement, answer)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_withdrawn(self, call: Callable[[str, Sequence[str], int], None]) -> None:
        """`call` is called with a driver, the trips whose offers they hold no more, since they are not
        free, and since when (ms, by Redis' clock)."""
        self._withdrawn.append(call)

    async def withdraw_offers(self, keys: Keys, driver_id: str, trip_ids: Sequence[str]) -> None:
        """Takes a driver out of the offers of these trips, whose waves go on with others."""
        with contextlib.suppress(StoreUnavailable):  # the offers end by themselves
            await self._pipeline.run(
                "withdraw_offers",
                (keys.waves, keys.wake, *(keys.offers(trip_id) for trip_id in trip_ids)),
                (driver_id, *trip_ids),
            )

    def close(self) -> None:
        """Sends what waits, to be answered until the pipeline is closed."""
        for batch in list(self._filling.values()):
            self._send(batch)

    def _join(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> asyncio.Future[int | list[Any]]:
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
        result: asyncio.Future[int | list[Any]] = loop.create_future()
        batch.changes.append((attempt, settlement, answer))
        batch.results.append(result)
        if len(batch.changes) == _MAX_BATCH:
            self._send(batch)
        return result

    def _end_turn(self, batch: _Batch) -> None:
        if self._filling.get(batch.keys.zone) is batch:
            self._send(batch)
            self._pipeline.flush()  # everything of this turn has been gathered

    def _send(self, batch: _Batch) -> None:
        del self._filling[batch.keys.zone]
        SETTLE_BATCH_CHANGES.observe(len(batch.changes))
        reply = self.settle_changes(batch.keys, batch.changes)
        reply.add_done_callback(batch.answered)
        reply.add_done_callback(partial(self._look_for_corrupt, batch))

    def settle_changes(
        self, keys: Keys, changes: Sequence[tuple[Attempt, Settlement, StoredAnswer | None]]
    ) -> asyncio.Future[list[SettleResult]]:
        """Runs the script; no two changes share a trip or a driver.

        Says of each whether its trip was written (1 or 0), -1 where the hash is not of the version
        before (nothing was done), or the text of an error; or, where the driver held offers of other
        trips and is not free any more, a list of the number, the time in ms, and those trips.
        """
        names: list[str] = [
            keys.claims, keys.seen, keys.events, keys.channel(""), keys.waves, keys.turned_down,
            keys.wake,
        ]  # fmt: skip
        args: list[Any] = [self._fix_age_ms]
        for attempt, settlement, answer in changes:
            trip_id, driver_id = attempt.trip_id, settlement.driver_id
            names += (
                keys.trip(trip_id) if trip_id else keys.epoch,
                keys.driver(driver_id) if driver_id else keys.epoch,
                keys.trip_claim(trip_id or NOBODY), keys.driver_claim(attempt.driver_id or NOBODY),
                attempt.record_key(keys), keys.geo(settlement.driver_vehicle_type or NOBODY),
                keys.offers(trip_id or NOBODY), keys.barred(trip_id or NOBODY),
                keys.inbox(driver_id or NOBODY),
            )  # fmt: skip
            names += [keys.inbox(driver) for driver in settlement.inboxes]
            args += (
                orjson.dumps(_record(attempt, settlement, answer)),
                "" if answer is None else done_record(answer),
                settlement.event, *[message.frame for message in settlement.messages],
            )  # fmt: skip
        return self._pipeline.run("settle_changes", names, args)

    def _look_for_corrupt(self, batch: _Batch, reply: asyncio.Future[list[SettleResult]]) -> None:
        """Has the keys looked into where a change stumbled over one: a later try finds it mended."""
        if reply.cancelled() or reply.exception() is not None:
            return
        texts = [text for text in reply.result() if isinstance(text, str) and is_corrupt(text)]
        if texts:
            self._pipeline.corrupt(_names_of(batch), texts[0])


def _names_of(batch: _Batch) -> list[str]:
    """The keys that a batch's changes touch."""
    keys = batch.keys
    names = names_of_zone(keys)
    for attempt, settlement, _ in batch.changes:
        names += (attempt.record_key(keys), keys.geo(settlement.driver_vehicle_type or NOBODY))
        names += names_of_trip(keys, attempt.trip_id or NOBODY)
        for driver in {attempt.driver_id, settlement.driver_id, *settlement.inboxes}:
            names += names_of_driver(keys, driver or NOBODY)
    return names


def _record(attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None) -> dict[str, Any]:
    """One change as `settle_changes` reads it; the script's header names the fields.

    What does not apply is left out. The long texts follow as arguments of their own, since a script
    takes longer to unpack them from JSON than for all the rest.
    """
    record: dict[str, Any] = {
        "token": attempt.token,
        "entry": attempt.entry,
        "inboxes": len(settlement.inboxes),
    }
    if attempt.trip_id:
        record["trip_id"] = attempt.trip_id
    if settlement.trip is not None:
        record["trip"] = _trip_record(settlement.trip, settlement.before)
    if settlement.driver_id:
        record["driver_id"] = settlement.driver_id
    if settlement.effect is not None:
        record["effect"] = settlement.effect
    if settlement.driver is not None:
        driver = settlement.driver
        record["driver"] = {"version": driver.version, "fields": driver_fields(driver)}
    if settlement.messages:
        record["to"] = [message.to for message in settlement.messages]
    if settlement.barred_driver:
        record["barred_driver"] = settlement.barred_driver
    if answer is not None:
        record["answer_ttl_ms"] = attempt.key_ttl_ms
    return record


def _trip_record(trip: Trip, before: Trip | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "version": trip.version,
        "wave": "start" if trip.current_status is Status.PENDING else "stop",
        "fields": trip.to_hash(before),
    }
    if before is not None:
        record["base_version"] = before.version
    if trip.current_status in FINAL:
        record["ttl_s"] = FINISHED_TTL_S
    return record
