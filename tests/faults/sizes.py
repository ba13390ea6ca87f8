"""How much a server holds: memory, files, threads, and connections to either engine."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import asyncpg
import psutil

from tests.faults.stage import Stage


class Size(NamedTuple):
    """Of both servers together; `at_s` is the time since the first look, `memory_mb` what is resident."""

    at_s: float
    memory_mb: float
    files: int
    threads: int
    redis_clients: int
    sessions: int

    def __str__(self) -> str:
        return (
            f"{self.at_s:>6.0f} s  {self.memory_mb:>6.0f} MB  {self.files:>4} files  {self.threads:>3} threads"
            f"  {self.redis_clients:>3} connections of Redis  {self.sessions:>3} of Postgres"
        )


class Sizes:
    """Looks at the servers of a stage again and again, until it is cancelled."""

    def __init__(self, stage: Stage, every_s: float) -> None:
        self._stage = stage
        self._every_s = every_s
        self._began = time.monotonic()
        self.seen: list[Size] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                self.seen.append(await self.look())
            except (OSError, asyncpg.PostgresError, psutil.NoSuchProcess):
                continue  # an engine or a server is away at this moment

    async def look(self) -> Size:
        """What both servers hold now. Raises what an engine raises that is away."""
        processes = [psutil.Process(server.process.pid) for server in self._stage.servers]
        clients = await asyncio.wait_for(self._stage.primary.client.client_list(), 2)
        async with asyncio.timeout(5):
            session = await asyncpg.connect(self._stage.database_url)
            try:
                sessions = await session.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    " AND pid <> pg_backend_pid()"
                )
            finally:
                await session.close()
        return Size(
            time.monotonic() - self._began,
            sum(process.memory_info().rss for process in processes) / 2**20,
            sum(process.num_fds() for process in processes),
            sum(process.num_threads() for process in processes),
            len(clients),
            sessions,
        )
