"""A proxy between servers and an engine: the name that a failover moves, and the network that fails.

It listens on a port of 127.0.0.1, or on a unix socket for an engine that has one. What it carries can be delayed,
its answers swallowed, its connections closed halfway or cut.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

#: A port of 127.0.0.1, or the path of a unix socket.
Address = int | Path
_CHUNK = 65_536
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Listens for as long as it is open, whatever becomes of its target."""

    def __init__(self) -> None:
        #: How long in s each piece takes, in both directions.
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._target: Address | None = None
        self._is_swallowing = False
        self._near: set[asyncio.StreamWriter] = set()
        self._far: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, target: Address, listen: Path | None = None) -> int:
        """Starts to listen on `listen`, or on a free port, which it returns."""
        self._target = target
        if listen is not None:
            self._server = await asyncio.start_unix_server(self._accept, listen)
            return 0
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def target(self) -> Address | None:
        return self._target

    def point(self, target: Address) -> None:
        """Sends new connections to another engine."""
        self._target = target

    def cut(self) -> None:
        """Ends every connection at once, and refuses new ones until `point`."""
        self._target = None
        for writer in (*self._near, *self._far):
            writer.transport.abort()

    def swallow_answers(self) -> None:
        """From now on the engine hears everything, and nobody hears of it."""
        self._is_swallowing = True

    def stop_swallowing(self) -> None:
        """Lets answers through again. A connection that lacks some would answer the wrong question: all end."""
        self._is_swallowing = False
        for writer in (*self._near, *self._far):
            writer.transport.abort()

    def half_close(self) -> None:
        """Says to every server that nothing more will come, and still takes what they send."""
        for writer in self._near:
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._near.add(writer)
        try:
            if self._target is not None:
                with contextlib.suppress(OSError):
                    await self._join((reader, writer), self._target)
        finally:
            writer.transport.abort()
            self._near.discard(writer)
            self._connections.discard(task)

    async def _join(self, near: Streams, target: Address) -> None:
        far = await _connect(target)
        self._far.add(far[1])
        ways = [
            asyncio.create_task(self._carry(near[0], far[1])),
            asyncio.create_task(self._carry(far[0], near[1], is_answer=True)),
        ]
        try:
            if self._target == target:  # it was not cut while this connected
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far[1].transport.abort()
            self._far.discard(far[1])
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the other side has gone, or is half closed
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not (is_answer and self._is_swallowing):
                    writer.write(data)
                    await writer.drain()


async def _connect(target: Address) -> Streams:
    if isinstance(target, Path):
        return await asyncio.open_unix_connection(target)
    return await asyncio.open_connection("127.0.0.1", target)
