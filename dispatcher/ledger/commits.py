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
from typing import Any, Final

import asyncpg
import structlog
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.idempotency import KeyedAnswer, StoredAnswer
from dispatcher.ledger.changes import Change, Outcome, OutcomeCode, to_composite
from dispatcher.ledger.database import QUERIES, UNAVAILABLE_ERRORS, Database

log = structlog.get_logger("dispatcher.ledger")

#: Postgres asks for these to be sent again (manual, 13.5): five times in all, with jitter.
_MAX_TRIES: Final = 5
_RETRIED_ERRORS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# After the first try, which is made without it: its machinery costs as much as a whole change.
_RETRYING: Final = AsyncRetrying(
    stop=stop_after_attempt(_MAX_TRIES - 1),
    wait=wait_random_exponential(multiplier=0.005, max=0.2),
    retry=retry_if_exception_type(_RETRIED_ERRORS),
    reraise=True,
)
# Every join of the commit is by a key over a batch. Its plans are made once, since making them takes
# longer than a small batch.
_SESSION_SETTINGS: Final = {
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
_FIRST_PLANS_CHANGES: Final = 64
_PLANS_LIFE_S: Final = 10.0


@dataclass(slots=True)
class _Entry:
    change: Change
    answer: KeyedAnswer | None
    outcome: asyncio.Future[Outcome] = field(default_factory=asyncio.Future)

    def subjects(self) -> list[Any]:
        """What no other change of the same batch may touch."""
        change = self.change
        found: list[Any] = []
        if change.trip_id:
            found.append(("trip", change.trip_id))
        if driver := change.set_driver or change.required_driver:
            found.append(("driver", driver))
        if self.answer is not None:
            key = self.answer.key
            found.append(("key", key.user_id, key.endpoint, key.key))
        return found


class Commits:
    """Commits changes. One for each server process."""

    def __init__(self, url: str, *, timeout_s: float, max_batch: int) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._max_batch = max_batch
        self._waiting: deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        # When the plans are to be made anew: in changes, and by the monotonic clock.
        self._changes_left = self._changes_per_plan = _FIRST_PLANS_CHANGES
        self._plans_expire_at = 0.0
        #: Batches sent and changes in them, for the metrics.
        self.batches = 0
        self.changes = 0

    async def start(self) -> None:
        """Connects and begins to commit. Raises StoreUnavailable where Postgres is away."""
        await self._connected()
        self._task = asyncio.create_task(self._run())

    async def commit(self, change: Change, answer: KeyedAnswer | None = None) -> Outcome:
        """Commits one change, and the answer to keep for its key, in the next batch.

        Raises StoreUnavailable where nothing was sent, OutcomeUnknown where the answer was lost.
        The commit goes on where the caller is cancelled.
        """
        if self._closing:
            raise StoreUnavailable("the ledger is closed")
        entry = _Entry(change, answer)
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
            except UNAVAILABLE_ERRORS:
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
        while self._waiting and len(batch) < self._max_batch:
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
        rows = [to_composite(i, entry.change, entry.answer) for i, entry in enumerate(batch)]
        try:
            await self._renew_plans(connection, len(batch))
            try:
                outcomes = await send(connection, rows, timeout_s=self._timeout_s)
            except _RETRIED_ERRORS:
                outcomes = await _RETRYING(send, connection, rows, timeout_s=self._timeout_s)
        except _RETRIED_ERRORS as error:
            # Rolled back as often as we may try: nothing happened.
            log.warning("commit gave way too often", changes=len(batch), error=str(error))
            _fail(batch, StoreUnavailable("postgres"))
            return
        except (asyncpg.DataError, ValueError) as error:
            await self._commit_singly(batch, error)
            return
        except asyncpg.ReadOnlySQLTransactionError:
            # A failover left us with a standby: nothing happened, and the next one looks again.
            self._drop()
            _fail(batch, StoreUnavailable("postgres is read-only"))
            return
        except UNAVAILABLE_ERRORS as error:
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
                outcome.set_result(_outcome(code, *stored))

    async def _renew_plans(self, connection: Any, changes: int) -> None:
        now = time.monotonic()
        self._changes_left -= changes
        if self._changes_left >= 0 and now < self._plans_expire_at:
            return
        if self._changes_left < 0:
            self._changes_per_plan *= 2
        self._changes_left, self._plans_expire_at = self._changes_per_plan, now + _PLANS_LIFE_S
        await connection.execute("DISCARD PLANS", timeout=self._timeout_s)

    async def _commit_singly(self, batch: list[_Entry], error: Exception) -> None:
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
                    server_settings=_SESSION_SETTINGS
                    | {"statement_timeout": str(int(self._timeout_s * 1000 * 0.9))},
                )
            except UNAVAILABLE_ERRORS as error:
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
    except (*UNAVAILABLE_ERRORS, *_RETRIED_ERRORS):
        raise
    except asyncpg.PostgresError:
        # A row breaks a constraint, and nothing was done: now each row for itself.
        return await connection.fetch(QUERIES.commit_changes.sql, rows, timeout=timeout_s)


def _fail(batch: list[_Entry], error: Exception) -> None:
    for entry in batch:
        if not entry.outcome.done():
            entry.outcome.set_exception(type(error)(*error.args))
            entry.outcome.exception()  # a caller that is gone does not retrieve it


def _outcome(code: str, status: int | None, body: str | None, fingerprint: str | None) -> Outcome:
    if status is None or body is None or fingerprint is None:
        return Outcome(OutcomeCode(code))
    # The commit does not say when the stored answer expires.
    return Outcome(OutcomeCode(code), StoredAnswer(fingerprint, status, body, expires_at_ms=0))


async def was_committed(
    database: Database, change: Change, answer: KeyedAnswer | None, attempt: str
) -> bool:
    """Whether this very attempt is in the history, or its key's row holds its answer.

    False where Postgres cannot be asked, or knows nothing of it yet.
    """
    try:
        if change.event is not None:
            row = await database.row(
                "event_of_attempt", trip_id=change.trip_id, version=change.version, attempt=attempt
            )
            return row is not None
        if answer is not None:
            stored = await database.stored_answer(answer.key)
            return stored is not None and stored.body == answer.body
    except StoreUnavailable:
        pass
    return False
