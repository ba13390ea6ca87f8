"""Shorter ways through aiohttp: its router, its reader of bodies, and its server's connections.

A request of a small body then costs half of what aiohttp's own way costs. What is leant on, and is
held by `tests/unit/test_fastpath.py` against the library that is installed:

- `AppRunner._make_server` makes the server, with `request_handler` and `request_factory` to take over;
- the reader of a body that came with its head is at its `_eof`, and `_buffer` has it in one piece.

`connection` and those below it say what they lean on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpVersion11
from aiohttp.typedefs import Handler

from dispatcher.web.connection import Connection, last_calls, problem
from dispatcher.web.door import Door

#: How long the rest of a refused body is read and dropped, so that the client sees the answer.
_LINGER_S: Final = 5.0
#: Bytes that arrive in one part, and pause no connection.
_MAX_BODY_AT_HAND: Final = 4096

#: Handlers by method and raw path, for routes whose path is fixed: aiohttp's router takes longer.
DIRECT_HANDLERS: Final = web.AppKey("direct_handlers", dict[tuple[str, str], Handler])


def make_runner(
    app: web.Application, *, door: Door | None = None, shutdown_timeout_s: float = 10.0
) -> Runner:
    """A runner for the application; `shutdown_timeout_s` is for requests that are being answered.

    Without a `door`, connections have one of the usual limits.
    """
    runner = Runner(app, shutdown_timeout=shutdown_timeout_s)
    runner.door = door
    return runner


def body_at_hand(request: web.Request) -> bytes | None:
    """The body where all of it came with its head; None where it must be waited for, and read.

    It is taken out of aiohttp's reader, past bookkeeping that is for larger bodies.
    """
    content = request._payload
    if (
        type(content) is not StreamReader
        or not content._eof
        or content._exception is not None
        or len(content._buffer) != 1
        or content._size > _MAX_BODY_AT_HAND
        or request._message.chunked
    ):
        return None
    content._size = 0
    return content._buffer.popleft()


def _is_unsafe(request: web.Request) -> bool:
    """Whether another may see another body than these chunks: it is encoded, or of HTTP/1.0."""
    named = request.headers.getall(hdrs.TRANSFER_ENCODING, ())
    encodings = [name.strip().lower() for name in named]
    return encodings != ["chunked"] or request.version < HttpVersion11


class _Server(web.Server):
    def __init__(self, *arguments: Any, door: Door | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._door = Door() if door is None else door

    def __call__(self) -> web.RequestHandler:
        return Connection(
            self,
            door=self._door,
            loop=asyncio.get_running_loop(),
            # Slow and failed requests are logged around the handlers.
            access_log=None,
            auto_decompress=False,  # encoded bodies are refused, not inflated
            lingering_time=_LINGER_S,
            keepalive_timeout=0,  # the door ends idle connections
        )


async def _refuse_encoding() -> web.StreamResponse:
    """Whoever decodes less or more of a body than another sees another request (RFC 9112, 6.1)."""
    response = problem("malformed_request", "Of transfer encodings, only chunked is known, in HTTP/1.1.")
    response.keep_alive = False
    return cast(web.StreamResponse, response)


class Runner(web.AppRunner):
    """A runner of connections that are ended in two steps."""

    door: Door | None = None

    def announce_end(self) -> None:
        """Each connection's next answer is its last, and says so.

        A client that keeps connections goes to another server then, and sends no call while this one
        closes the connection: it would be lost.
        """
        server = self.server
        if server is not None:
            server.request_factory = last_calls(server.request_factory)  # for what is accepted just now
            for connection in server.connections:
                cast(Connection, connection).announce_end()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        direct_handlers, by_router = self.app[DIRECT_HANDLERS], made.request_handler

        # No coroutine of its own: an idle WebSocket would hold it.
        def dispatch(request: web.Request) -> Awaitable[web.StreamResponse]:
            message = request._message
            if message.chunked and _is_unsafe(request):
                return _refuse_encoding()
            handler = direct_handlers.get((message.method, message.path))
            if handler is not None and hdrs.EXPECT not in message.headers:
                return handler(request)
            return by_router(request)

        return _Server(
            cast(Any, dispatch),
            door=self.door,
            request_factory=made.request_factory,
            handler_cancellation=False,  # a client that goes away does not undo a commit
        )
