"""Redis stands still, forgets, has no memory left, or is replaced by one that lacks the last writes."""

from __future__ import annotations

import asyncio
from random import Random

from tests.faults.kinds.fault import pause
from tests.faults.stage import Stage


async def pause_redis(stage: Stage, random: Random) -> None:
    """Redis keeps its connections and answers nothing."""
    await pause(stage.primary.pids, random.uniform(0.2, 2.0))


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


async def run_out_of_memory(stage: Stage, random: Random) -> None:
    """Redis refuses what would take more memory, and answers everything else."""
    client = stage.primary.client
    await client.config_set("maxmemory", "1mb")
    try:
        await asyncio.sleep(random.uniform(0.3, 2.0))
    finally:
        await client.config_set("maxmemory", "0")


ALL = (
    pause_redis,
    flush,
    flush_scripts,
    drop_redis_connections,
    restart_redis_empty,
    fail_over,
    run_out_of_memory,
)
