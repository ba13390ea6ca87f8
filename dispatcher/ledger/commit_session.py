"""The one session that commits: how it is set up, its plans, and what errors say of a transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any, Final

import asyncpg

from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.changes import take_changes
from dispatcher.ledger.connections import connect
from dispatcher.ledger.database import QUERIES, UNAVAILABLE_ERRORS
from dispatcher.observe.series import COMMIT_BATCH_CHANGES, COMMIT_BATCH_SECONDS, ENGINE_ERRORS

#: Postgres asks for these to be sent again (manual, 13.5).
RETRIED_ERRORS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# Every join of the commit is by a key over a batch. Its plans are made once, since making them takes
# longer than a small batch.
_SETTINGS: Final = {
    "application_name": "dispatcher-ledger",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
#: How long a batch waits for a row that another session has locked. Batches of other servers hold
#: theirs for a few ms; a session that holds one for longer is to delay the changes of that row alone.
_LOCK_TIMEOUT_S: Final = 0.1
# A plan that was made while a table or a partial index was small reads it from end to end once it is
# large, until ANALYZE comes by. So plans are made anew whenever twice as much may have been written as
# before, and as often as this in s: trips that are live come and go within the hour.
_FIRST_PLANS_CHANGES: Final = 64
_PLANS_LIFE_S: Final = 10.0


class CommitSession:
    """A connection that is held for good, and made anew where it was lost."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connection: Any = None
        # When the plans are to be made anew: in changes, and by the monotonic clock.
        self._changes_left = self._changes_per_plan = _FIRST_PLANS_CHANGES
        self._plans_expire_at = 0.0

    async def connected(self) -> Any:
        """The connection. Raises StoreUnavailable where Postgres is away."""
        if self._connection is None or self._connection.is_closed():
            try:
                # The statement's own timeout ends before ours, and ours before the claim's lease:
                # past its lease, a claim's commit can no longer succeed.
                async with asyncio.timeout(self._timeout_s):
                    connection = await connect(
                        self._url,
                        timeout=self._timeout_s,
                        server_settings=_SETTINGS
                        | {
                            "statement_timeout": _in_ms(self._timeout_s * 0.9),
                            "lock_timeout": _in_ms(min(_LOCK_TIMEOUT_S, self._timeout_s / 2)),
                        },
                    )
                    try:
                        await take_changes(connection)
                    except BaseException:
                        connection.terminate()
                        raise
            except (*UNAVAILABLE_ERRORS, asyncpg.LockNotAvailableError) as error:
                # A new session reads Postgres' own catalog, which an operator may have locked.
                ENGINE_ERRORS.add("postgres")
                raise StoreUnavailable("postgres") from error
            self._connection = connection
        return self._connection

    async def renew_plans(self, changes: int) -> None:
        """Has plans made anew where they may be too old for a batch of so many changes."""
        now = time.monotonic()
        self._changes_left -= changes
        if self._changes_left >= 0 and now < self._plans_expire_at:
            return
        if self._changes_left < 0:
            self._changes_per_plan *= 2
        self._changes_left, self._plans_expire_at = self._changes_per_plan, now + _PLANS_LIFE_S
        await self._connection.execute("DISCARD PLANS", timeout=self._timeout_s)

    async def locked(self, subjects: Collection[Any]) -> set[Any]:
        """Those of the trips and drivers, as (kind, id), that other sessions have locked."""
        connection = await self.connected()
        rows = await connection.fetch(
            QUERIES.locked_rows.sql,
            sorted(subject[1] for subject in subjects if subject[0] == "trip"),
            sorted(subject[1] for subject in subjects if subject[0] == "driver"),
            timeout=self._timeout_s,
        )
        return {tuple(row) for row in rows}

    def drop(self) -> None:
        """Lets go of the connection at once; the next batch makes another one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Says goodbye to Postgres."""
        if self._connection is not None:
            try:
                await self._connection.close(timeout=self._timeout_s)
            except UNAVAILABLE_ERRORS:
                self._connection.terminate()


async def send(connection: Any, rows: list[tuple[Any, ...]], *, timeout_s: float | None = None) -> Any:
    """Commits a batch; says of each row what became of it."""
    began_s = time.perf_counter()
    try:
        told = await connection.fetch(QUERIES.apply_changes.sql, rows, timeout=timeout_s)
    except (*UNAVAILABLE_ERRORS, *RETRIED_ERRORS, asyncpg.LockNotAvailableError):
        raise
    except asyncpg.PostgresError:
        # A row breaks a constraint, and nothing was done: now each row for itself.
        told = await connection.fetch(QUERIES.commit_changes.sql, rows, timeout=timeout_s)
    COMMIT_BATCH_SECONDS.observe(time.perf_counter() - began_s)
    COMMIT_BATCH_CHANGES.observe(len(rows))
    return told


def is_rolled_back(error: BaseException) -> bool:
    """Whether it is sure that nothing was written.

    An ERROR ends the transaction, and the session goes on. What is FATAL ends the session, which may
    have been right after the commit.
    """
    return isinstance(error, asyncpg.PostgresError) and getattr(error, "severity_en", "") == "ERROR"


def _in_ms(seconds: float) -> str:
    return str(int(seconds * 1000))
