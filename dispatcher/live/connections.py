"""redis-py's connections, so that who opens one or waits for an answer can be cancelled at any time.

redis-py sends by `asyncio.wait_for`, and that of Python 3.11 forgets a cancellation that comes when
what it waits for has just ended: a task that is cancelled then goes on, and who waits for its end
waits for ever (https://github.com/python/cpython/issues/86296).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from dispatcher.live.tls import TlsContext


class _Cancellable(AbstractConnection):
    """Ends its task with the cancellation that was forgotten."""

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        await super().send_packed_command(command, check_health)
        if task.cancelling() > before:
            await self.disconnect(nowait=True)  # the answer will not be read
            raise asyncio.CancelledError


class TcpConnection(_Cancellable, Connection):
    """To a port."""


class UnixConnection(_Cancellable, UnixDomainSocketConnection):
    """To a socket in the file system."""


class TlsConnection(_Cancellable, SSLConnection):
    """To a port, by TLS with a context which there is."""

    def __init__(self, *, tls: TlsContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = tls


class SentinelConnection(_Cancellable, SentinelManagedConnection):
    """To whom the Sentinels name."""


class SentinelTlsConnection(_Cancellable, SentinelManagedSSLConnection):
    """To whom the Sentinels name, by TLS with a context which there is."""

    def __init__(self, *, tls: TlsContext, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.ssl_context = tls
