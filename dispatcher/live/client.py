"""redis-py's clients, set up so that no command is ever sent twice by itself."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_CONNECT_TIMEOUT_S = 2
#: Of what redis-py itself asks, the handshake included; `protocol` has the pipeline's own.
_REPLY_TIMEOUT_S = 5.0


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
    return Redis.from_url(url, max_connections=256, **options)
