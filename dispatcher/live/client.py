"""redis-py's clients, set up so that no command is ever sent twice by itself."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_CONNECT_TIMEOUT_S = 2
_CLUSTER_REPLY_TIMEOUT_S = 5


def connect(url: str, *, cluster: bool) -> Any:
    """A client of one node, or of a cluster; it repeats no command, since a script may have run."""
    no_retry = Retry(NoBackoff(), 0)
    if cluster:
        return RedisCluster.from_url(
            url,
            decode_responses=True,
            protocol=2,
            retry=no_retry,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_CLUSTER_REPLY_TIMEOUT_S,
        )
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        retry=no_retry,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        max_connections=256,
    )
