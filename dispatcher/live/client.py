"""redis-py's clients, set up so that no command is ever sent twice by itself."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from dispatcher.live.address import Kind, RedisAddress, parse_address
from dispatcher.live.connections import (
    SentinelConnection,
    SentinelTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from dispatcher.live.tls import TlsContext

_CONNECT_TIMEOUT_S = 2
#: Of what redis-py itself asks, the handshake included; `protocol` has the pipeline's own.
_REPLY_TIMEOUT_S = 5.0
#: Of a Sentinel: the next one is asked then.
_SENTINEL_TIMEOUT_S = 1.0
#: Scripts share one; the others are for questions about the server itself, which each zone asks.
_MAX_CONNECTIONS = 64


class _BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the Sentinels for the primary at each new connection; who finds none free waits for one."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def connect(url: str) -> Any:
    """A client of the one primary that `url` leads to, directly or by its Sentinels.

    It repeats no command, since a script may have run. Raises ValueError.
    """
    address = parse_address(url)
    if address.kind is Kind.SENTINEL:
        return _connect_by_sentinels(address)
    return connect_to(address, *address.hosts[:1])


def connect_to(address: RedisAddress, host: tuple[str, int] | None = None) -> Any:
    """A client of the node at `host`, of the deployment at `address`; None: by its socket's path."""
    # Who finds none free waits for one: a server of many zones asks for all of them at once.
    return _client(address.options, host, _timeouts(_CONNECT_TIMEOUT_S, _REPLY_TIMEOUT_S), address.tls)


def sentinels_of(address: RedisAddress) -> Sentinel:
    """The Sentinels themselves."""
    limits = _timeouts(_SENTINEL_TIMEOUT_S, _SENTINEL_TIMEOUT_S)
    # A question to a Sentinel may be asked twice: its connection is idle for days.
    limits["retry"] = Retry(NoBackoff(), 1)
    sentinels = Sentinel([])  # type: ignore[no-untyped-call]
    sentinels.sentinels = [
        _client(address.sentinel_options, host, limits, address.tls) for host in address.hosts
    ]
    return sentinels


def _client(
    options: dict[str, Any],
    host: tuple[str, int] | None,
    limits: dict[str, Any],
    tls: TlsContext | None,
) -> Any:
    if host is None:
        own: dict[str, Any] = {"connection_class": UnixConnection}
    else:
        own = {"connection_class": TcpConnection, "host": host[0], "port": host[1]}
        if tls is not None:
            own |= {"connection_class": TlsConnection, "tls": tls}
    return Redis.from_pool(
        BlockingConnectionPool(
            max_connections=_MAX_CONNECTIONS, timeout=_REPLY_TIMEOUT_S, **options, **limits, **own
        )
    )


def _connect_by_sentinels(address: RedisAddress) -> Any:
    own: dict[str, Any] = {"connection_class": SentinelConnection}
    if address.tls is not None:
        own = {"connection_class": SentinelTlsConnection, "tls": address.tls}
    return sentinels_of(address).master_for(
        address.master,
        connection_pool_class=_BlockingSentinelPool,
        max_connections=_MAX_CONNECTIONS,
        timeout=_REPLY_TIMEOUT_S,
        **address.options,
        **_timeouts(_CONNECT_TIMEOUT_S, _REPLY_TIMEOUT_S),
        **own,
    )


def _timeouts(connect_s: float, reply_s: float) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": connect_s,
        "socket_timeout": reply_s,
    }
