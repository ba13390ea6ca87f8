"""The faults, each a coroutine that brings it about and ends it. How long is drawn from the seed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import asyncpg

from tests.faults.stage import Stage

Fault = Callable[[Stage, Random], Awaitable[None]]


async def kill_server(stage: Stage, random: Random) -> None:
    """A server dies at once and comes back."""
    await stage.restart_server(random.randrange(2))


async def pause_server(stage: Stage, random: Random) -> None:
    """A server stands still, longer than a claim's lease or shorter, and goes on as if nothing had been."""
    await _pause([stage.servers[random.randrange(2)].process.pid], random.uniform(0.2, 2.5))


async def pause_redis(stage: Stage, random: Random) -> None:
    """Redis keeps its connections and answers nothing."""
    await _pause(stage.primary.pids, random.uniform(0.2, 2.0))


async def pause_postgres(stage: Stage, random: Random) -> None:
    """Postgres keeps its connections and answers nothing."""
    await _pause(stage.postgres_pids(), random.uniform(0.2, 2.0))


async def flush(stage: Stage, random: Random) -> None:
    """Redis forgets everything."""
    await stage.flush()


async def flush_scripts(stage: Stage, random: Random) -> None:
    """Redis forgets the scripts."""
    await stage.primary.client.script_flush()


async def drop_redis_connections(stage: Stage, random: Random) -> None:
    """Redis ends the servers' connections, of commands or of messages."""
    await stage.primary.client.client_kill_filter(_type=random.choice(["normal", "pubsub"]), skipme=True)


async def restart_redis_empty(stage: Stage, random: Random) -> None:
    """Redis dies, and an empty one answers in its place."""
    await stage.restart_empty()


async def fail_over(stage: Stage, random: Random) -> None:
    """A replica that lacks the last writes takes the primary's place."""
    await stage.fail_over(random.uniform(0.1, 1.2))


async def terminate_sessions(stage: Stage, random: Random) -> None:
    """Postgres ends every session of the servers."""
    connection = await asyncpg.connect(stage.database_url)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()


async def hold_rows(stage: Stage, random: Random) -> None:
    """Somebody else's transaction holds the rows of two live trips for longer than a commit may take."""
    connection = await asyncpg.connect(stage.database_url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT FROM trip_requests WHERE current_status IN ('pending', 'accepted', 'ongoing')"
                " ORDER BY created_at DESC LIMIT 2 FOR UPDATE SKIP LOCKED"
            )
            await asyncio.sleep(random.uniform(0.5, 2.0))
    finally:
        await connection.close()


async def die_together(stage: Stage, random: Random) -> None:
    """Both servers lose Redis and die with what they were about to tell it; it comes back without that."""
    stage.proxy.cut()
    await asyncio.sleep(random.uniform(0.02, 0.2))  # what was claimed is committed meanwhile
    stage.kill_servers()
    if random.random() < 0.5:
        await stage.restart_empty()
    else:
        await stage.fail_over(0)
    await asyncio.gather(stage.restart_server(0), stage.restart_server(1))


#: What the shortest run has.
ALWAYS: Sequence[Fault] = (kill_server, pause_server, flush, fail_over)
ALL: Sequence[Fault] = (
    *ALWAYS,
    pause_redis,
    pause_postgres,
    flush_scripts,
    drop_redis_connections,
    restart_redis_empty,
    terminate_sessions,
    hold_rows,
    die_together,
)
#: Those beside which a server may stand still.
WITH_A_PAUSE: Sequence[Fault] = (flush, fail_over, restart_redis_empty, terminate_sessions, hold_rows)


async def _pause(pids: list[int], pause_s: float) -> None:
    try:
        _send(pids, signal.SIGSTOP)
        await asyncio.sleep(pause_s)
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a session of Postgres may have ended
            os.kill(pid, number)
