"""Connections that redis-py opens and this package reads."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError


def connect(url: str, *, cluster: bool) -> Any:
    """A client that never sends a command twice by itself: a script may have run already."""
    once = Retry(NoBackoff(), 0)
    if cluster:
        return RedisCluster.from_url(
            url,
            decode_responses=True,
            protocol=2,
            retry=once,
            socket_connect_timeout=2,
            socket_timeout=5,
        )
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        retry=once,
        socket_connect_timeout=2,
        max_connections=256,
    )


class Line(asyncio.Protocol):
    """A connection of redis-py's, which has made itself known, read without redis-py's streams.

    Replies are handled as their bytes come in. redis-py's own way takes a coroutine and a timeout for
    each, which is more than all the rest of a call.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.transport: asyncio.Transport = connection._writer.transport
        self._streams = self.transport.get_protocol()
        self.transport.set_protocol(self)
        self.parser = hiredis.Reader(encoding="utf-8", replyError=ResponseError)
        self.is_open = True

    def received(self) -> None:
        """There may be whole replies in the parser: with RESP2, it gives False once there are not."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """The connection is closed, by either side."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data)
        self.received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._streams.connection_lost(exc)  # redis-py waits for it when it closes
        self.lost(exc)


def can_be_taken(connection: Any) -> bool:
    """Whether there is a socket behind it: fakeredis has none."""
    return hasattr(connection._writer, "transport")
