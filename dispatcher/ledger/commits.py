"""The commit: changes are gathered, and one SQL statement commits a batch of them.

Nothing waits on purpose: while one batch is at Postgres, the next one fills. One connection does
it, held for good: batches of one server never wait for each other's locks, and a pool's reset
round trip is spared.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg
import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.times import moment
from dispatcher.ledger.database import QUERIES, UNAVAILABLE

log = structlog.get_logger("dispatcher.ledger")

#: Postgres asks for these to be sent again (manual, 13.5): five times in all, with jitter.
_TRIES: Final = 5
_AGAIN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# After the first try, which is made without it: its machinery costs as much as a whole change.
_RETRYING: Final = AsyncRetrying(
    stop=stop_after_attempt(_TRIES - 1),
    wait=wait_random_exponential(multiplier=0.005, max=0.2),
    retry=retry_if_exception_type(_AGAIN),
    reraise=True,
)
# Every join of the commit is by a key over a batch. Its plans are made once, since making them takes
# longer than a small batch.
_SESSION: Final = {
    "application_name": "dispatcher-ledger",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
# A plan that was made while a table or a partial index was small reads it from end to end once it is
# large, until ANALYZE comes by. So plans are made anew whenever twice as much may have been written as
# before, and as often as this in s: trips that are live come and go within the hour.
_FIRST_PLANS: Final = 64
_PLANS_LIVE_S: Final = 10.0


class Change(NamedTuple):
    """One change, as the composite type `ledger_change` of the schema (its comments hold here)."""

    trip_id: str | None = None
    is_creation: bool = False
    expect_version: int | None = None
    sources: tuple[str, ...] | None = None
    to_status: str | None = None
    driver_id: str | None = None
    required_driver: str | None = None
    zone: str | None = None
    customer_id: str | None = None
    vehicle_type: str | None = None
    pickup: tuple[float, float] | None = None
    dropoff: tuple[float, float] | None = None
    reason: str | None = None
    event: str | None = None
    actor_id: str | None = None
    actor_role: str | None = None
    payload: str | None = None
    at_ms: int = 0
    set_driver: str | None = None
    set_zone: str | None = None
    set_online: bool | None = None
    set_available: str | None = None
    set_vehicle: str | None = None
    expect_driver_version: int | None = None
    declines: str | None = None
    key: IdempotencyKey | None = None
    response: str | None = None
    status_code: int = 0
    expires_at_ms: int = 0


class Outcome(NamedTuple):
    """What became of a change: `ok`, `stale`, or `replay` with the answer that is stored."""

    code: str
    status: int | None = None
    response: str | None = None
    fingerprint: str | None = None


@dataclass(slots=True)
class _Entry:
    change: Change
    outcome: asyncio.Future[Outcome] = field(default_factory=asyncio.Future)

    def subjects(self) -> list[Any]:
        """What no other change of the same batch may touch."""
        change = self.change
        found: list[Any] = []
        if change.trip_id:
            found.append(("trip", change.trip_id))
        if driver := change.set_driver or change.required_driver:
            found.append(("driver", driver))
        if change.key:
            found.append(("key", change.key.user_id, change.key.endpoint, change.key.key))
        return found


class Ledger:
    """Commits changes. One for each server process."""

    def __init__(self, url: str, *, timeout_s: float, most: int) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._most = most
        self._waiting: deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        # When the plans are to be made anew: in changes, and by the monotonic clock.
        self._changes_left = self._plans_last = _FIRST_PLANS
        self._plans_end = 0.0
        #: Batches sent and changes in them, for the metrics.
        self.batches = 0
        self.changes = 0

    async def start(self) -> None:
        """Connects and begins to commit. Raises StoreUnavailable where Postgres is away."""
        await self._connected()
        self._task = asyncio.create_task(self._run())

    async def commit(self, change: Change) -> Outcome:
        """Commits one change, in the next batch.

        Raises StoreUnavailable where nothing was sent, OutcomeUnknown where the answer was lost.
        The commit goes on where the caller is cancelled.
        """
        if self._closing:
            raise StoreUnavailable("the ledger is closed")
        entry = _Entry(change)
        self._waiting.append(entry)
        self._wake.set()
        return await entry.outcome

    async def close(self) -> None:
        """Commits what is waiting, then lets go of the connection."""
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task
        if self._connection is not None:
            try:
                await self._connection.close(timeout=self._timeout_s)
            except UNAVAILABLE:
                self._connection.terminate()

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._next_batch()
            try:
                await self._commit_batch(batch)
            except Exception as error:
                log.exception("batch failed", changes=len(batch))
                _fail(batch, error)

    def _next_batch(self) -> list[_Entry]:
        """As many waiting changes as fit, none of which touches what another one touches."""
        batch: list[_Entry] = []
        later: list[_Entry] = []
        touched: set[Any] = set()
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            subjects = entry.subjects()
            if touched.isdisjoint(subjects):
                batch.append(entry)
            else:
                later.append(entry)
            touched.update(subjects)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit_batch(self, batch: list[_Entry]) -> None:
        try:
            connection = await self._connected()
        except StoreUnavailable as error:
            _fail(batch, error)
            return
        rows = [_composite(i, entry.change) for i, entry in enumerate(batch)]
        try:
            await self._plan_anew(connection, len(batch))
            try:
                outcomes = await send(connection, rows, timeout_s=self._timeout_s)
            except _AGAIN:
                outcomes = await _RETRYING(send, connection, rows, timeout_s=self._timeout_s)
        except _AGAIN as error:
            # Rolled back as often as we may try: nothing happened.
            log.warning("commit gave way too often", changes=len(batch), error=str(error))
            _fail(batch, StoreUnavailable("postgres"))
            return
        except (asyncpg.DataError, ValueError) as error:
            await self._part(batch, error)
            return
        except asyncpg.ReadOnlySQLTransactionError:
            # A failover left us with a standby: nothing happened, and the next one looks again.
            self._drop()
            _fail(batch, StoreUnavailable("postgres is read-only"))
            return
        except UNAVAILABLE as error:
            self._drop()
            log.warning("commit's answer was lost", changes=len(batch), error=repr(error))
            _fail(batch, OutcomeUnknown("postgres"))
            return
        self.batches += 1
        self.changes += len(batch)
        for row in outcomes:
            index, code, *stored = row
            outcome = batch[index].outcome
            if outcome.done():
                continue
            if code.startswith("error "):
                log.error("change refused by Postgres", reason=code, trip=batch[index].change.trip_id)
                outcome.set_exception(RuntimeError(code))
            else:
                outcome.set_result(Outcome(code, *stored))

    async def _plan_anew(self, connection: Any, changes: int) -> None:
        now = time.monotonic()
        self._changes_left -= changes
        if self._changes_left >= 0 and now < self._plans_end:
            return
        if self._changes_left < 0:
            self._plans_last *= 2
        self._changes_left, self._plans_end = self._plans_last, now + _PLANS_LIVE_S
        await connection.execute("DISCARD PLANS", timeout=self._timeout_s)

    async def _part(self, batch: list[_Entry], error: Exception) -> None:
        # An argument that cannot be written or read fails the statement before a row could fail alone.
        if len(batch) == 1:
            log.error("change cannot be sent", reason=repr(error), trip=batch[0].change.trip_id)
            _fail(batch, RuntimeError(str(error)))
            return
        for entry in batch:
            await self._commit_batch([entry])

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            try:
                # The statement's own timeout ends before ours, and ours before the claim's lease:
                # past its lease, a claim's commit can no longer succeed.
                self._connection = await asyncpg.connect(
                    self._url,
                    timeout=self._timeout_s,
                    server_settings=_SESSION
                    | {"statement_timeout": str(int(self._timeout_s * 1000 * 0.9))},
                )
            except UNAVAILABLE as error:
                raise StoreUnavailable("postgres") from error
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def send(connection: Any, rows: list[tuple[Any, ...]], *, timeout_s: float | None = None) -> Any:
    """Commits a batch; says of each row what became of it."""
    try:
        return await connection.fetch(QUERIES.apply_changes.sql, rows, timeout=timeout_s)
    except (*UNAVAILABLE, *_AGAIN):
        raise
    except asyncpg.PostgresError:
        # A row breaks a constraint, and nothing was done: now each row for itself.
        return await connection.fetch(QUERIES.commit_changes.sql, rows, timeout=timeout_s)


def _fail(batch: list[_Entry], error: Exception) -> None:
    for entry in batch:
        if not entry.outcome.done():
            entry.outcome.set_exception(type(error)(*error.args))
            entry.outcome.exception()  # a caller that is gone does not retrieve it


def _composite(index: int, change: Change) -> tuple[Any, ...]:
    """The change as asyncpg encodes it: the composite's attributes in their order."""
    at, key = moment(change.at_ms), change.key
    head = (index, *change[:17], at, *change[18:25])
    if key is None:
        return (*head, None, None, None, None, None, None, None, None)
    return (
        *head,
        key.user_id,
        key.endpoint,
        key.key,
        key.request_payload.decode(),
        key.fingerprint,
        change.response,
        change.status_code,
        moment(change.expires_at_ms),
    )
