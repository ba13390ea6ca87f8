"""Checks at start: both engines can be reached, are new enough, and are set up safely."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from dispatcher.config import SettingsError

_TIMEOUT_S = 5.0  # an engine that takes longer to say hello is not one to start on
_OLDEST_REDIS = (7, 2)
_OLDEST_VALKEY = (8, 0)
_OLDEST_POSTGRES = 14


async def check_engines(redis_url: str, database_url: str, *, redis_cluster: bool = False) -> None:
    """Both checks. Raises SettingsError, which names the setting and never shows a password."""
    await check_redis(redis_url, cluster=redis_cluster)
    await check_postgres(database_url)


async def check_redis(url: str, *, cluster: bool = False) -> None:
    """Redis 7.2+ or Valkey 8+, of the kind that is expected, that never evicts a key."""
    try:
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise _refused("REDIS_URL", url, f"is not a Redis URL: {error}") from None
    try:
        server: dict[str, Any] = await client.info("server")
        policy = await _eviction_policy(client)
    except (RedisError, OSError, TimeoutError) as error:
        raise _refused("REDIS_URL", url, f"Redis cannot be reached: {error}") from None
    finally:
        await client.aclose()
    _check_redis_version(server)
    mode = server.get("redis_mode") or server.get("server_mode")
    if mode == "sentinel":
        raise SettingsError("DISPATCHER_REDIS_URL: is a Sentinel; give the URL of a data node")
    if cluster != (mode == "cluster"):
        raise SettingsError(
            f"DISPATCHER_REDIS_CLUSTER: is {str(cluster).lower()}, but the server runs in {mode} mode"
        )
    if policy != "noeviction":
        raise SettingsError(
            f"DISPATCHER_REDIS_URL: maxmemory-policy is {policy} there and must be noeviction, "
            "since an evicted trip would be a wrong answer"
        )


async def check_postgres(url: str) -> None:
    """Postgres 14+ that takes writes."""
    try:
        connection = await asyncpg.connect(url, timeout=_TIMEOUT_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise _refused("DATABASE_URL", url, f"Postgres cannot be reached: {reason}") from None
    try:
        version: int = connection.get_server_version().major
        # Reported by the server with the connection since Postgres 14.
        read_only = "on" in (
            getattr(connection.get_settings(), "in_hot_standby", "off"),
            getattr(connection.get_settings(), "default_transaction_read_only", "off"),
        )
    finally:
        async with asyncio.timeout(_TIMEOUT_S):
            await connection.close()
    if version < _OLDEST_POSTGRES:
        raise SettingsError(
            f"DISPATCHER_DATABASE_URL: Postgres {version} is there; "
            f"{_OLDEST_POSTGRES} or newer is needed"
        )
    if read_only:
        raise SettingsError("DISPATCHER_DATABASE_URL: is read-only; give the URL of the primary")


async def _eviction_policy(client: redis.asyncio.Redis) -> str:
    try:
        answer = await client.config_get("maxmemory-policy")
        return str(answer["maxmemory-policy"])
    except (ResponseError, KeyError):  # managed services forbid CONFIG, but not INFO
        memory: dict[str, Any] = await client.info("memory")
        return str(memory.get("maxmemory_policy"))


def _check_redis_version(server: dict[str, Any]) -> None:
    """Valkey also reports a redis_version, which stays at the one it was forked from."""
    name, oldest = ("Valkey", _OLDEST_VALKEY) if "valkey_version" in server else ("Redis", _OLDEST_REDIS)
    text = str(server.get(f"{name.lower()}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if version < oldest:
        needed = ".".join(map(str, oldest))
        raise SettingsError(
            f"DISPATCHER_REDIS_URL: {name} {text} is there; {name} {needed} or newer is needed"
        )


def _refused(setting: str, url: str, reason: str) -> SettingsError:
    """A SettingsError without the URL's password, also where a library's message repeats it."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    for secret in {password, unquote(password)} if password else ():
        reason = reason.replace(secret, "***")
    return SettingsError(f"DISPATCHER_{setting}: {reason}")
