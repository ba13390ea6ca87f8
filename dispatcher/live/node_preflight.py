"""Checks one data node before a server starts on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoPermissionError,
    ResponseError,
    TryAgainError,
)

from dispatcher.core.times import now_ms
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.permissions import find_refusals

_READY_MS: Final = 1_000  # what tries whether Redis can be written goes by itself
_OLDEST_REDIS: Final = (7, 2)
_OLDEST_VALKEY: Final = (8, 0)


class UnfitError(Exception):
    """A server cannot start on this Redis; the message says why, after the name of the setting."""


async def check_node(client: redis.asyncio.Redis, zones: Sequence[str]) -> None:
    """Checks a node that stands alone, or is the primary of its replicas.

    Raises UnfitError, redis.exceptions.RedisError, OSError.
    """
    await _check_server(client, zones, mode="standalone")
    replication: dict[str, Any] = await client.info("replication")
    # A replica is behind its primary, and what is written to one is lost, if it takes writes at all.
    if replication.get("role") == "slave":
        primary = f"{replication.get('master_host')}:{replication.get('master_port')}"
        raise UnfitError(f"is a replica of {primary}; give the URL of the primary")
    await _check_writable(client, DEFAULT_ZONE)


async def check_cluster_node(
    client: redis.asyncio.Redis, zones: Sequence[str], own_zone: str | None
) -> None:
    """Checks a primary of a cluster; `own_zone` is a zone whose slot it has.

    Raises UnfitError, redis.exceptions.RedisError, OSError.
    """
    await _check_server(client, zones, mode="cluster")
    if own_zone is not None:
        await _check_writable(client, own_zone)


async def mode_of(client: redis.asyncio.Redis) -> str:
    """standalone, cluster or sentinel."""
    return _mode(await client.info("server"))


def _mode(server: dict[str, Any]) -> str:
    return str(server.get("redis_mode") or server.get("server_mode"))  # the second is Valkey's own name


async def _check_server(client: redis.asyncio.Redis, zones: Sequence[str], *, mode: str) -> None:
    try:
        server: dict[str, Any] = await client.info("server")
        _check_version(server)
        _check_mode(_mode(server), wanted=mode)
        _check_eviction(await _eviction_policy(client))
        refusals = await find_refusals(client, zones, in_cluster=mode == "cluster")
    except NoPermissionError as error:
        # Redis' own words name the command.
        raise UnfitError(f"its user may not do what a server does: {error}") from None
    if refusals:
        raise UnfitError(f"its user may not {'; nor '.join(refusals)}")


def _check_version(server: dict[str, Any]) -> None:
    # Valkey also reports a redis_version, which stays at that of the Redis it was forked from.
    name, oldest = ("Valkey", _OLDEST_VALKEY) if "valkey_version" in server else ("Redis", _OLDEST_REDIS)
    text = str(server.get(f"{name.lower()}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if version < oldest:
        needed = ".".join(map(str, oldest))
        raise UnfitError(f"{name} {text} is there; {name} {needed} or newer is needed")


def _check_mode(mode: str, *, wanted: str) -> None:
    if mode == "sentinel":
        raise UnfitError("is a Sentinel: write redis+sentinel://HOST:PORT/MASTER")
    if mode == "cluster" and wanted != mode:
        raise UnfitError("is a node of a cluster: write redis+cluster://HOST:PORT")
    if mode != wanted:
        raise UnfitError(f"is a single node in {mode} mode, no cluster: write redis://HOST:PORT")


def _check_eviction(policy: str) -> None:
    if policy != "noeviction":
        raise UnfitError(
            f"maxmemory-policy is {policy} there and must be noeviction, "
            "since an evicted trip would be a wrong answer"
        )


async def _eviction_policy(client: redis.asyncio.Redis) -> str:
    try:
        answer = await client.config_get("maxmemory-policy")
        return str(answer["maxmemory-policy"])
    except (ResponseError, KeyError):  # managed services forbid CONFIG, but not INFO
        memory: dict[str, Any] = await client.info("memory")
        return str(memory.get("maxmemory_policy"))


async def _check_writable(client: redis.asyncio.Redis, zone: str) -> None:
    """What nothing but a write tells: no memory, no disk, too few replicas."""
    try:
        await client.set(keys_of(zone).ready, now_ms(), px=_READY_MS)
    except (AskError, ClusterDownError, TryAgainError):
        raise  # a cluster is moving slots, or failing over
    except NoPermissionError as error:
        raise UnfitError(f"its user may not do what a server does: {error}") from None
    except ResponseError as error:
        raise UnfitError(f"Redis cannot be written: {error}") from None
