"""The checks at start: each refusal names its setting, and never shows a password."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from dispatcher.config import SettingsError
from dispatcher.embedded.engines import EngineUrls
from dispatcher.ledger.preflight import check_postgres
from dispatcher.live.preflight import check_redis

Info = dict[str, Any]


@pytest.fixture
async def policy(engines: EngineUrls) -> AsyncIterator[Callable[[str], Any]]:
    """Sets the eviction policy of the session's Valkey for one test."""
    async with redis.asyncio.Redis.from_url(engines.redis_url) as client:
        yield lambda name: client.config_set("maxmemory-policy", name)
        await client.config_set("maxmemory-policy", "noeviction")


def _pretend(monkeypatch: pytest.MonkeyPatch, **server: Any) -> None:
    """Let INFO say something else, as other servers do."""

    async def info(self: Any, section: str) -> Info:
        return {"maxmemory_policy": "noeviction"} if section == "memory" else server

    monkeypatch.setattr(redis.asyncio.Redis, "info", info)


async def test_the_embedded_engines_pass(engines: EngineUrls) -> None:
    await check_redis(engines.redis_url)
    await check_postgres(engines.database_url)


async def test_eviction_is_refused(engines: EngineUrls, policy: Callable[[str], Any]) -> None:
    await policy("allkeys-lru")
    with pytest.raises(SettingsError, match=r"DISPATCHER_REDIS_URL: .*allkeys-lru.*noeviction"):
        await check_redis(engines.redis_url)


async def test_where_config_is_forbidden_info_is_asked(
    engines: EngineUrls, policy: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(self: Any, name: str) -> None:
        raise ResponseError("unknown command 'CONFIG'")

    monkeypatch.setattr(redis.asyncio.Redis, "config_get", forbidden)
    await check_redis(engines.redis_url)
    await policy("volatile-ttl")
    with pytest.raises(SettingsError, match="volatile-ttl"):
        await check_redis(engines.redis_url)


@pytest.mark.parametrize(
    ("server", "accepted"),
    [
        ({"redis_version": "7.2.0"}, True),
        ({"redis_version": "8.0.3"}, True),
        ({"redis_version": "7.0.15"}, False),
        ({"redis_version": "6.2.14"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.11"}, False),
    ],
)
async def test_versions(
    engines: EngineUrls, monkeypatch: pytest.MonkeyPatch, server: Info, accepted: bool
) -> None:
    _pretend(monkeypatch, redis_mode="standalone", **server)
    if accepted:
        await check_redis(engines.redis_url)
        return
    with pytest.raises(SettingsError, match=r"DISPATCHER_REDIS_URL: .*newer is needed"):
        await check_redis(engines.redis_url)


async def test_the_kind_of_server_must_be_the_one_that_is_set(
    engines: EngineUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = engines.redis_url.replace("redis://", "redis+cluster://").removesuffix("/0")
    with pytest.raises(
        SettingsError, match=r"_URL: 127\.0\.0\.1:\d+ is a single node in standalone mode"
    ):
        await check_redis(url)
    _pretend(monkeypatch, redis_mode="cluster", redis_version="7.2.0")
    with pytest.raises(SettingsError, match=r"_URL: is a node of a cluster: write redis\+cluster://"):
        await check_redis(engines.redis_url)
    _pretend(monkeypatch, redis_mode="sentinel", redis_version="7.2.0")
    with pytest.raises(SettingsError, match=r"DISPATCHER_REDIS_URL: is a Sentinel"):
        await check_redis(engines.redis_url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:1/0",
        "redis://user:hunter2@127.0.0.1:notaport/0",
        "redis://:hunter2@127.0.0.1:1/notadatabase",
        "unix://:hunter2@/nowhere/hunter2.sock",
        "redis://:hunter2@host.invalid:6379",
    ],
)
async def test_a_redis_that_cannot_be_reached(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DISPATCHER_REDIS_URL: ") as caught:
        await check_redis(url)
    assert "hunter2" not in str(caught.value)


async def test_a_wrong_redis_password(engines: EngineUrls) -> None:
    address = engines.redis_url.partition("@")[2]
    with pytest.raises(SettingsError, match=r"^DISPATCHER_REDIS_URL: ") as caught:
        await check_redis(f"redis://:hunter2@{address}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@127.0.0.1:1/db",
        "postgresql://user:hunter2@127.0.0.1:notaport/db",
        "postgresql://user:hunter2@host.invalid/db",
        "postgresql://user:hunter2@/db?host=/nowhere",
        "postgresql://user:hunter2@127.0.0.1:1/db?sslmode=hunter2",
    ],
)
async def test_a_postgres_that_cannot_be_reached(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DISPATCHER_DATABASE_URL: ") as caught:
        await check_postgres(url)
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_does_not_exist(engines: EngineUrls) -> None:
    url = engines.database_url.replace("@/dispatcher?", "@/missing?")
    with pytest.raises(SettingsError, match=r'DISPATCHER_DATABASE_URL: .*"missing"'):
        await check_postgres(url)


async def test_a_read_only_database_is_refused(
    empty_database_url: str, admin: asyncpg.Connection
) -> None:
    name = empty_database_url.rpartition("@/")[2].partition("?")[0]
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(SettingsError, match="read-only"):
        await check_postgres(empty_database_url)


async def test_an_old_postgres_is_refused(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Version:
        major = 13

    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda self: Version)
    with pytest.raises(SettingsError, match=r"Postgres 13 is there; 14 or newer"):
        await check_postgres(empty_database_url)
