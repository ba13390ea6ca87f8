"""The commit: changes are gathered, and one SQL statement commits a batch of them.

Nothing waits on purpose: while one batch is at Postgres, the next one fills. One connection does
it, held for good: batches of one server never wait for each other's locks, and a pool's reset
round trip is spared.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
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
from dispatcher.ledger.commit_session import (
    RETRIED_ERRORS,
    CommitSession,
    is_rolled_back,
    send,
)
from dispatcher.ledger.database import UNAVAILABLE_ERRORS
from dispatcher.ledger.waiting_changes import HeldChanges, WaitingChange
from dispatcher.observe.series import ENGINE_ERRORS

log = structlog.get_logger("dispatcher.ledger")

#: A batch that Postgres asks for again is sent five times in all, with jitter.
_MAX_TRIES: Final = 5
#: Changes that wait at most: a second's work or two. Who comes then is refused at once.
_MAX_WAITING: Final = 10_000
#: What keeps us from hearing which rows are locked.
_NOT_TOLD: Final = (*UNAVAILABLE_ERRORS, asyncpg.LockNotAvailableError, StoreUnavailable)
#: SQLSTATE classes of a server that cannot write now: resources (disk, memory), locks.
_UNWRITABLE: Final = ("error 53", "error 55P03", "error 25006")
# An enum's own look-up takes ten times as long.
_OUTCOME_CODES: Final = {code.value: code for code in OutcomeCode}
# After the first try, which is made without it: its machinery costs as much as a whole change.
_RETRYING: Final = AsyncRetrying(
    stop=stop_after_attempt(_MAX_TRIES - 1),
    wait=wait_random_exponential(multiplier=0.005, max=0.2),
    retry=retry_if_exception_type(RETRIED_ERRORS),
    reraise=True,
)


class Commits:
    """Commits changes. One for each server process."""

    def __init__(self, url: str, *, timeout_s: float, max_batch: int) -> None:
        self._timeout_s = timeout_s
        self._max_batch = max_batch
        self._waiting: deque[WaitingChange] = deque()
        self._wake = asyncio.Event()
        self._session = CommitSession(url, timeout_s=timeout_s)
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._held = HeldChanges()
        #: Batches sent and changes in them, for the metrics.
        self.batches = 0
        self.changes = 0

    async def start(self) -> None:
        """Connects and begins to commit. Raises StoreUnavailable where Postgres is away."""
        await self._session.connected()
        self._task = asyncio.create_task(self._run())

    async def commit(
        self, change: Change, answer: KeyedAnswer | None = None, *, send_by: float = math.inf
    ) -> Outcome:
        """Commits one change, and the answer to keep for its key, in the next batch that leaves by
        `send_by`, by the monotonic clock: what is committed later may be looked for by nobody.

        Raises StoreUnavailable where nothing was written, OutcomeUnknown where the answer was lost.
        Where the caller is cancelled, a change that was not sent yet is dropped; one that was goes on,
        and OutcomeUnknown is raised.
        """
        if self._closing:
            raise StoreUnavailable("the ledger is closed")
        if len(self._waiting) + len(self._held) >= _MAX_WAITING:
            raise StoreUnavailable("too many changes wait for postgres")
        entry = WaitingChange(change, answer, send_by)
        self._waiting.append(entry)
        self._wake.set()
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            if entry.is_sent:
                raise OutcomeUnknown("postgres") from None
            raise  # its future is cancelled, which drops it from the queue

    def queue(self) -> dict[str, int]:
        """How many changes wait for the next batch, and are held back by a locked row."""
        return {"waiting": len(self._waiting), "held": len(self._held)}

    async def close(self) -> None:
        """Commits what is waiting, then lets go of the connection."""
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task
        await self._session.close()

    async def _run(self) -> None:
        while True:
            if self._held.due_in_s() == 0:
                await self._look_at_held()
            if not self._waiting:
                if self._closing and not self._held:
                    return
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._held.due_in_s()):
                        await self._wake.wait()
                continue
            batch = self._next_batch()
            if not batch:
                continue
            try:
                await self._commit_batch(batch)
            except Exception as error:
                log.exception("batch failed", changes=len(batch))
                _fail(batch, error)

    def _next_batch(self) -> list[WaitingChange]:
        """As many waiting changes as fit, none of which touches what another one touches."""
        batch: list[WaitingChange] = []
        later: list[WaitingChange] = []
        touched: set[Any] = set()
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if entry.outcome.done():  # its caller has gone
                continue
            subjects = entry.subjects()
            if self._held.touches(subjects):
                self._held.add([entry], wait_s=self._timeout_s)
                continue
            if touched.isdisjoint(subjects):
                batch.append(entry)
            else:
                later.append(entry)
            touched.update(subjects)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit_batch(self, batch: list[WaitingChange]) -> None:
        try:
            connection = await self._session.connected()
        except StoreUnavailable as error:
            _fail(batch, error)
            return
        now = time.monotonic()
        _fail(
            [entry for entry in batch if entry.send_by < now], StoreUnavailable("claimed too long ago")
        )
        batch = [entry for entry in batch if not entry.outcome.done()]  # the others' callers have gone
        if not batch:
            return
        for entry in batch:
            entry.is_sent = True
        try:
            _tell(batch, await self._send(connection, batch))
        except Exception as error:
            await self._send_failed(batch, error)
        else:
            self.batches += 1
            self.changes += len(batch)

    async def _send(self, connection: Any, batch: list[WaitingChange]) -> Any:
        rows = [to_composite(i, entry.change, entry.answer) for i, entry in enumerate(batch)]
        await self._session.renew_plans(len(batch))
        try:
            return await send(connection, rows, timeout_s=self._timeout_s)
        except RETRIED_ERRORS:
            return await _RETRYING(send, connection, rows, timeout_s=self._timeout_s)

    async def _send_failed(self, batch: list[WaitingChange], error: Exception) -> None:
        """Does what the error calls for. Raises it where it calls for nothing known."""
        match error:
            case asyncpg.LockNotAvailableError():
                await self._divide(batch)
            case asyncpg.DataError() | ValueError():
                await self._commit_singly(batch, error)
            case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
                # Rolled back as often as we may try: nothing happened.
                log.warning("commit gave way too often", changes=len(batch), error=str(error))
                _fail(batch, StoreUnavailable("postgres"))
            case asyncpg.ReadOnlySQLTransactionError():
                # A failover left us with a standby: nothing happened, and the next one looks again.
                self._session.drop()
                _fail(batch, StoreUnavailable("postgres is read-only"))
            case _ if not isinstance(error, UNAVAILABLE_ERRORS):
                raise error
            case _ if is_rolled_back(error):
                log.warning("commit was rolled back", changes=len(batch), error=repr(error))
                _fail(batch, StoreUnavailable("postgres"))
            case _:
                ENGINE_ERRORS.add("postgres")
                self._session.drop()
                log.warning("commit's answer was lost", changes=len(batch), error=repr(error))
                _fail(batch, OutcomeUnknown("postgres"))

    async def _commit_singly(self, batch: list[WaitingChange], error: Exception) -> None:
        # An argument that cannot be written or read fails the statement before a row could fail alone.
        if len(batch) == 1:
            log.error("change cannot be sent", reason=repr(error), trip_id=batch[0].change.trip_id)
            _fail(batch, RuntimeError(str(error)))
            return
        for entry in batch:
            await self._commit_batch([entry])

    async def _divide(self, batch: list[WaitingChange]) -> None:
        """Commits what of a batch no other session has locked, and holds back the rest.

        Nothing of the batch was written: its wait for a lock was over.
        """
        for entry in batch:
            entry.is_sent = False
        if len(batch) == 1:
            self._hold(batch)
            return
        try:
            locked = await self._locked(batch)
        except _NOT_TOLD as error:
            log.warning("locks cannot be looked at", changes=len(batch), error=repr(error))
            self._hold(batch)
            return
        held = [entry for entry in batch if not locked.isdisjoint(entry.subjects())]
        self._hold(held)
        if held:
            await self._commit_batch([e for e in batch if locked.isdisjoint(e.subjects())])
            return
        # It is no trip or driver that is locked, or no more.
        for entry in batch:
            await self._commit_batch([entry])

    def _hold(self, entries: list[WaitingChange]) -> None:
        for entry in entries:
            if entry.give_up_at is None:
                log.warning("row is locked by another session", trip_id=entry.change.trip_id)
        self._held.add(entries, wait_s=self._timeout_s)

    async def _look_at_held(self) -> None:
        """Puts held changes whose rows are free again to the front of the queue."""
        _fail(self._held.take_overdue(), StoreUnavailable("row is locked by another session"))
        try:
            locked = await self._locked(self._held.changes) if self._held else set()
        except Exception as error:
            if not isinstance(error, _NOT_TOLD):
                log.exception("held changes cannot be looked at")  # and the others are committed
            self._held.add((), wait_s=0)  # later
            return
        self._waiting.extendleft(reversed(self._held.take_free(locked)))

    async def _locked(self, entries: list[WaitingChange]) -> set[Any]:
        return await self._session.locked({s for entry in entries for s in entry.subjects()})


def _tell(batch: list[WaitingChange], rows: Any) -> None:
    for index, code, *stored in rows:
        outcome = batch[index].outcome
        if outcome.done():
            continue
        if code.startswith(_UNWRITABLE):
            log.warning("commit was rolled back", changes=1, error=code)
            outcome.set_exception(StoreUnavailable("postgres"))
        elif code.startswith("error "):
            log.error("change refused by Postgres", reason=code, trip_id=batch[index].change.trip_id)
            outcome.set_exception(RuntimeError(code))
        else:
            outcome.set_result(_outcome(code, *stored))


def _fail(batch: list[WaitingChange], error: Exception) -> None:
    for entry in batch:
        if not entry.outcome.done():
            entry.outcome.set_exception(type(error)(*error.args))
            entry.outcome.exception()  # a caller that is gone does not retrieve it


def _outcome(code: str, status: int | None, body: str | None, fingerprint: str | None) -> Outcome:
    outcome_code = _OUTCOME_CODES[code]
    if status is None or body is None or fingerprint is None:
        return Outcome(outcome_code)
    # The commit does not say when the stored answer expires.
    return Outcome(outcome_code, StoredAnswer(fingerprint, status, body, expires_at_ms=0))
