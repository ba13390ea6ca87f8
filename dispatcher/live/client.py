"""redis-py's clients, set up so that no command is ever sent twice by itself."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_CONNECT_TIMEOUT_S = 2
#: Of what redis-py itself asks, the handshake included; `protocol` has the pipeline's own.
_REPLY_TIMEOUT_S = 5.0
#: Scripts share one; the others are for questions about the server itself, which each zone asks.
_MAX_CONNECTIONS = 64


def connect(url: str, *, cluster: bool) -> Any:
    """A client of one node, or of a cluster; it repeats no command, since a script may have run."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "socket_timeout": _REPLY_TIMEOUT_S,
    }
    if cluster:
        return RedisCluster.from_url(url, **options)
    # Who finds none free waits for one: a server of many zones asks for all of them at once.
    pool = BlockingConnectionPool.from_url(
        url, max_connections=_MAX_CONNECTIONS, timeout=_REPLY_TIMEOUT_S, **options
    )
    return Redis.from_pool(pool)
