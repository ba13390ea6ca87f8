"""Postgres stands still, ends sessions, refuses writes, crashes; others hold its rows and tables."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import asyncpg

from tests.faults.kinds.fault import pause
from tests.faults.stage import Stage

_LIVE = "current_status IN ('pending', 'accepted', 'arrived', 'ongoing')"


async def pause_postgres(stage: Stage, random: Random) -> None:
    """Postgres keeps its connections and answers nothing."""
    await pause(stage.postgres_pids(), random.uniform(0.2, 2.0))


async def terminate_sessions(stage: Stage, random: Random) -> None:
    """Postgres ends every session of the servers."""
    async with _session(stage) as session:
        await _end_sessions(session)


async def hold_rows(stage: Stage, random: Random) -> None:
    """Somebody else's transaction holds the rows of two live trips for longer than a commit may take."""
    async with _session(stage) as session, session.transaction():
        await session.execute(
            f"SELECT FROM trip_requests WHERE {_LIVE} ORDER BY created_at DESC LIMIT 2 FOR UPDATE SKIP LOCKED"
        )
        await asyncio.sleep(random.uniform(0.5, 2.0))


async def lock_a_table(stage: Stage, random: Random) -> None:
    """Somebody else's transaction has a whole table for itself, as an ALTER TABLE does."""
    table = random.choice(["trip_requests", "driver_details", "trip_events", "idempotency_keys"])
    async with _session(stage) as session, session.transaction():
        await session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        await asyncio.sleep(random.uniform(0.2, 2.0))


async def lock_each_other_out(stage: Stage, random: Random) -> None:
    """Others take the same rows the other way round: trips first, and then drivers. Deadlocks follow.

    Postgres looks for them at once, and with `deadlock_priority` a server's session is the one that gives way.
    """
    async with _session(stage) as session:
        await session.execute("ALTER SYSTEM SET deadlock_timeout = '5ms'")
        await session.execute("SELECT pg_reload_conf()")
        await session.execute("SET deadlock_timeout = '1s'")
        try:
            for _ in range(random.randrange(5, 25)):
                with contextlib.suppress(asyncpg.DeadlockDetectedError):
                    async with session.transaction():
                        await session.execute(f"SELECT FROM trip_requests WHERE {_LIVE} FOR UPDATE")
                        await asyncio.sleep(random.uniform(0.01, 0.06))
                        await session.execute("SELECT FROM driver_details FOR UPDATE")
                await asyncio.sleep(0.02)
        finally:
            await session.execute("ALTER SYSTEM RESET deadlock_timeout")
            await session.execute("SELECT pg_reload_conf()")


async def refuse_writes(stage: Stage, random: Random) -> None:
    """Every new transaction is read-only, as on a standby or after an operator's emergency brake."""
    async with _session(stage) as session:
        await session.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await session.execute("SELECT pg_reload_conf()")
        try:
            await asyncio.sleep(random.uniform(0.3, 2.0))
        finally:
            await session.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await session.execute("SELECT pg_reload_conf()")


async def crash_postgres(stage: Stage, random: Random) -> None:
    """Postgres is killed with all its sessions, and recovers from its log."""
    await stage.crash_postgres(random.uniform(0.0, 1.0))


async def fill_the_disk(stage: Stage, random: Random) -> None:
    """There is no space left for either engine; then there is again, and whoever has died is started."""
    with stage.disk.filled():
        # The present segment of the log has room for a while; the next one has not.
        with contextlib.suppress(asyncpg.PostgresError, OSError):
            async with _session(stage) as session:
                await session.execute("SELECT pg_switch_wal()")
        await asyncio.sleep(random.uniform(0.3, 2.0))
    await stage.revive()


@contextlib.asynccontextmanager
async def _session(stage: Stage) -> AsyncIterator[asyncpg.Connection]:
    """A session of somebody else, past the proxy."""
    session = await asyncpg.connect(stage.database_url)
    try:
        yield session
    finally:
        await session.close()


async def _end_sessions(session: asyncpg.Connection) -> None:
    await session.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
