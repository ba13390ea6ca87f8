"""Readiness: asked within a second, of what an accept needs, and with the reason why not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
import redis.asyncio

from dispatcher.service.readiness import Readiness
from tests.harness.services import City, open_city


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


@pytest.fixture
def stop() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def readiness(city: City, stop: asyncio.Event) -> AsyncIterator[Readiness]:
    parts = city.parts
    opened = Readiness(
        zones=parts.zones,
        state=parts.live.state,
        database=parts.ledger.database,
        authorities=parts.authorities,
        stop=stop,
    )
    yield opened
    await opened.close()


async def _state(readiness: Readiness) -> tuple[bool, str, str]:
    started = time.monotonic()
    is_ready, details = await readiness.check()
    assert time.monotonic() - started < 1
    is_degraded = is_ready and details["redis"] != "ok"
    assert details["status"] == ("degraded" if is_degraded else "ready" if is_ready else "not ready"), (
        details
    )
    return is_ready, details["redis"], details["postgres"]


async def test_ready_and_stopping(readiness: Readiness, stop: asyncio.Event) -> None:
    assert await _state(readiness) == (True, "ok", "ok")
    stop.set()
    assert await _state(readiness) == (False, "ok", "ok")


@pytest.mark.parametrize(
    ("setting", "value", "normal", "reason"),
    [
        ("maxmemory", "1", "0", "out_of_memory"),
        ("min-replicas-to-write", "1", "0", "too_few_replicas"),
    ],
)
async def test_a_redis_that_cannot_be_written(
    city: City, readiness: Readiness, setting: str, value: str, normal: str, reason: str
) -> None:
    await city.redis("CONFIG", "SET", setting, value)
    try:
        assert await _state(readiness) == (True, reason, "ok")
    finally:
        await _past_the_breaker(city, "CONFIG", "SET", setting, normal)
    assert await _state(readiness) == (True, "ok", "ok")


async def test_a_redis_that_was_demoted(city: City, readiness: Readiness) -> None:
    await city.redis("REPLICAOF", "127.0.0.1", "1")
    try:
        assert await _state(readiness) == (True, "read_only", "ok")
    finally:
        await _past_the_breaker(city, "REPLICAOF", "NO", "ONE")
    assert await _state(readiness) == (True, "ok", "ok")


async def _past_the_breaker(city: City, *command: str) -> None:
    """Asks Redis though it is left alone, and waits until it is asked again."""
    client = redis.asyncio.Redis.from_url(str(city.parts.settings.redis_url))
    await client.execute_command(*command)
    await client.aclose()
    breaker = city.parts.live.pipeline.breaker
    assert breaker is not None
    async with asyncio.timeout(10):
        while breaker.is_open:
            await asyncio.sleep(0.02)


async def test_a_postgres_that_is_read_only(city: City, readiness: Readiness) -> None:
    name = await city.postgres.fetchval("SELECT current_database()")
    for value, postgres in (("on", "read_only"), ("off", "ok")):
        await city.postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        await _end_sessions(city.postgres)
        assert await _settled(readiness) == postgres


async def test_a_postgres_whose_tables_are_locked(
    city: City, readiness: Readiness, database_url: str
) -> None:
    other = await asyncpg.connect(database_url)
    for mode in ("SHARE", "ACCESS EXCLUSIVE"):
        async with other.transaction():
            await other.execute(f"LOCK TABLE trip_events IN {mode} MODE")
            assert await _state(readiness) == (False, "ok", "locked")
    await other.close()
    assert await _state(readiness) == (True, "ok", "ok")


async def test_a_postgres_without_our_tables(city: City, readiness: Readiness) -> None:
    await city.postgres.execute("ALTER TABLE trip_events RENAME TO gone")
    assert await _state(readiness) == (False, "ok", "no_schema")


async def test_a_postgres_that_is_frozen(city: City, readiness: Readiness) -> None:
    assert await _state(readiness) == (True, "ok", "ok")
    rows = await city.postgres.fetch(_SESSIONS)
    for row in rows:
        os.kill(row["pid"], signal.SIGSTOP)
    try:
        for _ in range(2):
            assert await _state(readiness) == (False, "ok", "silent")
    finally:
        for row in rows:
            os.kill(row["pid"], signal.SIGCONT)
    assert await _settled(readiness) == "ok"


_SESSIONS = """
    SELECT pid FROM pg_stat_activity
     WHERE application_name LIKE 'dispatcher%' AND datname = current_database()
"""


async def _end_sessions(postgres: asyncpg.Connection) -> None:
    await postgres.execute(f"SELECT pg_terminate_backend(pid) FROM ({_SESSIONS}) s")


async def _settled(readiness: Readiness) -> str:
    """What Postgres is once the sessions that were ended are noticed."""
    while (postgres := (await _state(readiness))[2]) in ("away", "silent"):
        await asyncio.sleep(0.01)
    return postgres
