"""Queries to Redis and Postgres beside the server: processes, versions, settings, contents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psutil
from redis import Redis

POSTGRES_SETTINGS = ("synchronous_commit", "fsync", "shared_buffers", "max_wal_size")


def redis_client(url: str) -> Redis:
    return Redis.from_url(url, decode_responses=True)


def in_postgres(url: str, work: Callable[[Any], Awaitable[Any]], *, database: str | None = None) -> Any:
    """Run `work(connection)` on a connection of its own; `database` wins over the URL's."""

    async def connected() -> Any:
        connection = await asyncpg.connect(url, database=database)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(connected())


def fetch(url: str, query: str, *arguments: Any) -> list[Any]:
    async def work(connection: Any) -> Any:
        return await connection.fetch(query, *arguments)

    rows: list[Any] = in_postgres(url, work)
    return rows


def value(url: str, query: str, *arguments: Any) -> Any:
    return fetch(url, query, *arguments)[0][0]


def execute(url: str, script: str) -> None:
    """One statement or several, separated by semicolons."""
    in_postgres(url, lambda connection: connection.execute(script))


def redis_pid(url: str) -> int | None:
    with redis_client(url) as client:
        pid = int(client.info("server")["process_id"])
    return pid if psutil.pid_exists(pid) else None


def postmaster_pid(url: str) -> int | None:
    """The parent of the backend that answers; None where Postgres runs on another machine."""

    async def look(connection: Any) -> int | None:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        try:
            process = psutil.Process(pid)
            return process.ppid() if "postgres" in process.name() else None
        except psutil.NoSuchProcess:
            return None

    found: int | None = in_postgres(url, look)
    return found


def describe(redis_url: str, database_url: str) -> dict[str, str]:
    """Versions and the settings that decide what a figure means."""
    with redis_client(redis_url) as client:
        info = client.info("server")
        name = "valkey" if "valkey_version" in info else "redis"
        kept = client.config_get("maxmemory-policy", "appendonly", "save", "io-threads")
    found = {name: str(info.get("valkey_version", info["redis_version"]))}
    found |= {f"{name} {setting}": (text or "''") for setting, text in kept.items()}
    found["postgres"] = value(database_url, "SHOW server_version")
    for setting in POSTGRES_SETTINGS:
        found[f"postgres {setting}"] = value(database_url, "SELECT current_setting($1)", setting)
    return found
