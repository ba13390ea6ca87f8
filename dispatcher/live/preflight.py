"""Checks Redis or Valkey before a server starts on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from dispatcher.config import SettingsError, url_refused
from dispatcher.core.times import now_ms
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.permissions import find_refusals

_TIMEOUT_S: Final = 5.0  # a server that takes longer to answer is not one to start on
_READY_MS: Final = 1_000  # what tries whether Redis can be written goes by itself
_OLDEST_REDIS: Final = (7, 2)
_OLDEST_VALKEY: Final = (8, 0)


async def check_redis(
    url: str, *, cluster: bool = False, zones: Sequence[str] = (DEFAULT_ZONE,)
) -> None:
    """Check that Redis 7.2+ or Valkey 8+ answers at `url`, that it never evicts a key, that it takes
    writes, and that the URL's user may do all that a server does to the keys of `zones`.

    `cluster` says whether the server is expected to be a node of a cluster.
    Raises SettingsError, which names the setting and never shows the URL's password.
    """
    try:
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise url_refused("redis_url", url, f"is not a Redis URL: {error}") from None
    try:
        server: dict[str, Any] = await client.info("server")
        _check_version(server)
        _check_mode(server, cluster=cluster)
        _check_eviction(await _eviction_policy(client))
        if not cluster:  # there, any node knows which one to write to
            _check_role(await client.info("replication"))
        _check_refusals(await find_refusals(client, zones))
        if not cluster:
            await _check_writable(client, url)
    except NoPermissionError as error:
        # Redis' own words name the command.
        raise url_refused("redis_url", url, f"its user may not do what a server does: {error}") from None
    except (RedisError, OSError, TimeoutError, UnicodeError) as error:
        raise url_refused("redis_url", url, f"Redis cannot be reached: {error}") from None
    finally:
        await client.aclose()


def _check_eviction(policy: str) -> None:
    if policy != "noeviction":
        raise SettingsError(
            f"DISPATCHER_REDIS_URL: maxmemory-policy is {policy} there and must be noeviction, "
            "since an evicted trip would be a wrong answer"
        )


async def _eviction_policy(client: redis.asyncio.Redis) -> str:
    try:
        answer = await client.config_get("maxmemory-policy")
        return str(answer["maxmemory-policy"])
    except (ResponseError, KeyError):  # managed services forbid CONFIG, but not INFO
        memory: dict[str, Any] = await client.info("memory")
        return str(memory.get("maxmemory_policy"))


def _check_role(replication: dict[str, Any]) -> None:
    """A replica is behind its primary, and what is written to one is lost, if it takes writes at all."""
    if replication.get("role") == "slave":
        primary = f"{replication.get('master_host')}:{replication.get('master_port')}"
        raise SettingsError(
            f"DISPATCHER_REDIS_URL: is a replica of {primary}; give the URL of the primary"
        )


def _check_refusals(refusals: Sequence[str]) -> None:
    if refusals:
        raise SettingsError(f"DISPATCHER_REDIS_URL: its user may not {'; nor '.join(refusals)}")


async def _check_writable(client: redis.asyncio.Redis, url: str) -> None:
    """What nothing but a write tells: no memory, no disk, too few replicas."""
    try:
        await client.set(keys_of(DEFAULT_ZONE).ready, now_ms(), px=_READY_MS)
    except ResponseError as error:
        raise url_refused("redis_url", url, f"Redis cannot be written: {error}") from None


def _check_version(server: dict[str, Any]) -> None:
    # Valkey also reports a redis_version, which stays at that of the Redis it was forked from.
    name, oldest = ("Valkey", _OLDEST_VALKEY) if "valkey_version" in server else ("Redis", _OLDEST_REDIS)
    text = str(server.get(f"{name.lower()}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if version < oldest:
        needed = ".".join(map(str, oldest))
        raise SettingsError(
            f"DISPATCHER_REDIS_URL: {name} {text} is there; {name} {needed} or newer is needed"
        )


def _check_mode(server: dict[str, Any], *, cluster: bool) -> None:
    mode = server.get("redis_mode") or server.get("server_mode")  # the second is Valkey's own name
    if mode == "sentinel":
        raise SettingsError("DISPATCHER_REDIS_URL: is a Sentinel; give the URL of a data node")
    if cluster != (mode == "cluster"):
        raise SettingsError(
            f"DISPATCHER_REDIS_CLUSTER: is {str(cluster).lower()}, but the server runs in {mode} mode"
        )
