"""A server of bare handlers behind the shorter ways through aiohttp, and a client of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import hdrs, web

from dispatcher.web.door import Door
from dispatcher.web.fastpath import DIRECT_HANDLERS, body_at_hand, make_runner
from dispatcher.web.responses import HttpResponse

HEAD = b"POST /fixed HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
CALL = HEAD + b"\r\n{}"
SMALL_BUFFER = 4_096


class Server:
    """A server of one POST handler, which notes what it finds, and of others that behave badly."""

    def __init__(self, door: Door | None) -> None:
        self.connections: list[Any] = []
        self.tasks: set[Any] = set()
        self.requests: list[weakref.ref[web.Request]] = []
        self.bodies: list[bytes | None] = []
        #: Calls to `/slow` that have come, and what lets them be answered.
        self.slow_calls = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.port = 0
        app = web.Application()
        for path, handler in (
            ("/fixed", self.handle), ("/slow", self.slow), ("/broken", self.broken),
            ("/unread", self.unread), ("/large", self.large),
        ):  # fmt: skip
            app.router.add_post(path, handler)
        app.router.add_get("/ws", self.socket)
        app[DIRECT_HANDLERS] = {("POST", "/fixed"): self.handle}
        self.runner = make_runner(app, door=door)

    async def handle(self, request: web.Request) -> Any:
        self.bodies.append(body_at_hand(request))
        await request.read()
        return self._answer(request)

    async def slow(self, request: web.Request) -> Any:
        self.slow_calls.release()
        await self.go_on.wait()
        return self._answer(request)

    async def unread(self, request: web.Request) -> Any:
        return self._answer(request)

    async def large(self, request: web.Request) -> Any:
        """Of more than small buffers of both ends take, and of less than pauses the connection."""
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        return HttpResponse(200, b"x" * 60_000, {})

    async def broken(self, request: web.Request) -> Any:
        raise RuntimeError("broken")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        transport = request.transport
        assert transport is not None, "a request keeps its transport after the upgrade"
        transport.abort()
        return socket

    def _answer(self, request: web.Request) -> Any:
        self.requests.append(weakref.ref(request))
        self.connections.append(request.protocol)
        self.tasks.add(asyncio.current_task())
        return HttpResponse(200, b"{}", {hdrs.CONTENT_TYPE: "application/json"})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, *parts: bytes, answers: int = 1) -> bytes:
        """Sends the parts with a pause in between, and reads so many answers with the body `{}`."""
        reader, writer = await self.connect()
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)
        raw = b""
        for _ in range(answers):
            raw += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), 10)
        writer.close()
        return raw


@contextlib.asynccontextmanager
async def open_server(door: Door | None = None) -> AsyncIterator[Server]:
    """The server, listening on a port of its own."""
    served = Server(door)
    await served.runner.setup()
    await web.TCPSite(served.runner, "127.0.0.1", 0).start()
    served.port = served.runner.addresses[0][1]
    yield served
    served.go_on.set()
    await served.runner.cleanup()
