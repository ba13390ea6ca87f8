"""A TCP proxy whose target can be changed: the name that a failover moves to another node."""

from __future__ import annotations

import asyncio
import contextlib

_CHUNK = 65_536


class Proxy:
    """Listens on a port of its own for as long as it is open; `cut` ends every connection."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._target: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, target: int) -> int:
        """Starts to listen; returns the port."""
        self._target = target
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def point(self, target: int) -> None:
        """Sends new connections to another port of this machine."""
        self._target = target

    def cut(self) -> None:
        """Ends every connection at once, and refuses new ones until `point`."""
        self._target = None
        for writer in self._writers:
            writer.transport.abort()

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
        self._writers.add(writer)
        try:
            if self._target is not None:
                with contextlib.suppress(OSError):
                    await self._join(reader, writer, self._target)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._connections.discard(task)

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        self._writers.add(far_writer)
        ways = [
            asyncio.create_task(_carry(reader, far_writer)),
            asyncio.create_task(_carry(far_reader, writer)),
        ]
        try:
            if self._target == target:  # it was not cut while this connected
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()
            self._writers.discard(far_writer)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
