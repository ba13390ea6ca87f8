"""Shorter ways through aiohttp. Everything in this package that leans on how aiohttp works stands here.

A request of a small body then costs half of what aiohttp's own way costs. What is leant on, and is
held by `tests/unit/test_fastpath.py` against the library that is installed:

- `AppRunner._make_server` makes the server, with `request_handler` and `request_factory` to take over;
- `RequestHandler.connection_made` starts the connection's one task; `_loop` is replaced after that,
  and every request's coroutine goes through its `create_task` in Python 3.11;
- `RequestHandler.start` hands what a handler returned to `finish_response`, which may return anything
  that has a `keep_alive`;
- `RequestHandler._upgraded` is true from a request that asks for an upgrade until its answer;
- `RequestHandler.handle_error` makes the answer to what could not be parsed;
- the reader of a body that came with its head is at its `_eof`, and `_buffer` has it in one piece.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Coroutine
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.typedefs import Handler

from dispatcher.core.errors import Refusal
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID
from dispatcher.observe.series import ACTIONS
from dispatcher.service.answers import refusal_answer
from dispatcher.web.action_counts import HTTP, UNKNOWN
from dispatcher.web.door import Door
from dispatcher.web.guarded_connection import GuardedConnection
from dispatcher.web.responses import SERVER, HttpResponse, answer_response, limit_lines
from dispatcher.web.upgraded_connection import requests_of_upgrades

_log = structlog.get_logger("dispatcher.web")

#: How long the rest of a refused body is read and dropped, so that the client sees the answer.
_LINGER_S: Final = 5.0
#: Bytes that arrive in one part, and pause no connection.
_MAX_BODY_AT_HAND: Final = 4096
_CONTINUE: Final = "100-continue"
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
#: Their head is another one: aiohttp's own response knows how.
_WITHOUT_BODY: Final = frozenset({204, 304})

#: Handlers by method and raw path, for routes whose path is fixed: aiohttp's router takes longer.
DIRECT_HANDLERS: Final = web.AppKey("direct_handlers", dict[tuple[str, str], Handler])


def make_runner(
    app: web.Application, *, door: Door | None = None, shutdown_timeout_s: float = 10.0
) -> web.AppRunner:
    """A runner for the application; `shutdown_timeout_s` is for requests that are being answered.

    Without a `door`, connections have one of the usual limits.
    """
    runner = _Runner(app, shutdown_timeout=shutdown_timeout_s)
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


def can_encode(response: HttpResponse, message: RawRequestMessage) -> bool:
    """Whether `encode` may write it: the request is of HTTP/1.1, and the answer has a body."""
    return (
        message.version == HttpVersion11
        and message.method != hdrs.METH_HEAD
        and response.status not in _WITHOUT_BODY
    )


def encode(response: HttpResponse) -> bytes:
    """Head and body (RFC 9112, 3 and 6.3). Raises ValueError where a header holds a line break."""
    lines = [f"{name}: {value}\r\n" for name, value in response.headers.items()]
    if not response.keep_alive:
        lines.append("Connection: close\r\n")
    head = "".join(lines)
    if head.count("\n") != len(lines) or head.count("\r") != len(lines):
        raise ValueError("a header holds a line break")
    limit = "" if response.limit is None else limit_lines(response.limit)
    body = response.body
    return (
        f"{_STATUS_LINES[response.status]}{head}{limit}Content-Length: {len(body)}\r\n"
        f"{_end_of_head(int(time.time()))}"
    ).encode("latin-1") + body


@lru_cache(maxsize=1)
def _end_of_head(now_s: int) -> str:
    return f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: {SERVER}\r\n\r\n"


class _LoopWithoutTasks:
    """The event loop as aiohttp's loop over the requests of a connection sees it in Python 3.11.

    There, each request would get a task of its own and wait for the loop's next turn, a tenth of all
    its time; here the coroutine is awaited as it is. Later Pythons have eager tasks, which cost little.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        self.create_future = loop.create_future
        self.call_at = loop.call_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """The coroutine itself, to be awaited where a task would have been."""
        return coroutine


class _Connection(GuardedConnection):
    """One connection, of one request after the other."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.transport is not None and sys.version_info < (3, 12):
            self._loop = cast(asyncio.AbstractEventLoop, _LoopWithoutTasks(self._loop))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what the parser could not read, or what failed outside of any handler."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client is gone, and nobody waits for an answer
        if request.writer.output_size > 0:
            raise ConnectionError("the response was already on its way")
        if request.headers.get(hdrs.EXPECT, _CONTINUE).lower() != _CONTINUE:
            status = 400  # aiohttp trips over the text of an expectation that it does not know
        if status >= 500:
            _log.error("Connection failed", exc_info=exc)
            response = _problem("internal_error")
        else:
            REQUEST_ID.set("")  # those of the call before
            TRIP_ID.set("")
            _log.debug("Malformed request", reason=message, peer=request.remote)
            response = _problem("malformed_request")
        ACTIONS.add(HTTP, UNKNOWN, response.code)
        response.keep_alive = False
        return response.to_aiohttp()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse | HttpResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends a response, in one write where it can.

        What aiohttp raised before any handler ran becomes a problem. True where the client is gone.
        """
        if isinstance(resp, web.HTTPException):  # an expectation that nobody knows, or `OPTIONS *`
            resp = _problem("malformed_request", resp.reason)
        if not isinstance(resp, HttpResponse):
            return await super().finish_response(request, resp, start_time)
        message = request._message
        if self._upgraded or not can_encode(resp, message):
            return await super().finish_response(request, resp.to_aiohttp(), start_time)
        if message.should_close:
            resp.keep_alive = False
        transport = self.transport
        is_gone = transport is None or transport.is_closing()
        if transport is not None and not is_gone:
            transport.write(encode(resp))
            if self._paused:  # a client that does not read
                await request.writer.drain()
        # aiohttp's loop asks it whether to keep the connection, and nothing else.
        return resp, is_gone  # type: ignore[return-value]


def _problem(code: str, message: str | None = None) -> HttpResponse:
    return answer_response(refusal_answer(Refusal(code, message)))


def _is_encoded(request: web.Request) -> bool:
    """Whether the chunks of a body hold something else than the body."""
    named = request.headers.getall(hdrs.TRANSFER_ENCODING, ())
    return [name.strip().lower() for name in named] != ["chunked"]


class _Server(web.Server):
    def __init__(self, *arguments: Any, door: Door | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._door = Door() if door is None else door

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            door=self._door,
            loop=asyncio.get_running_loop(),
            # Slow and failed requests are logged around the handlers.
            access_log=None,
            auto_decompress=False,  # encoded bodies are refused, not inflated
            lingering_time=_LINGER_S,
        )


async def _refuse_encoding() -> web.StreamResponse:
    """Whoever decodes less or more of a body than another sees another request (RFC 9112, 6.1)."""
    response = _problem("malformed_request", "Of transfer encodings, only chunked is known.")
    response.keep_alive = False
    return cast(web.StreamResponse, response)


class _Runner(web.AppRunner):
    door: Door | None = None

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        direct_handlers, by_router = self.app[DIRECT_HANDLERS], made.request_handler

        # No coroutine of its own: most calls need none, and an idle WebSocket would hold it.
        def handle(request: web.Request) -> Awaitable[web.StreamResponse]:
            connection: Any = request._protocol
            allowance = connection.allowance
            allowance.left -= 1
            if allowance.left < 1 or connection.is_watched or connection._messages:
                return handle_checked(connection, request)
            return dispatch(request)

        async def handle_checked(connection: _Connection, request: web.Request) -> web.StreamResponse:
            refused = await connection.check_call(request)
            return cast(web.StreamResponse, refused) if refused is not None else await dispatch(request)

        def dispatch(request: web.Request) -> Awaitable[web.StreamResponse]:
            message = request._message
            if message.chunked and _is_encoded(request):
                return _refuse_encoding()
            handler = direct_handlers.get((message.method, message.path))
            if handler is not None and hdrs.EXPECT not in message.headers:
                return handler(request)
            return by_router(request)

        return _Server(
            cast(Any, handle),
            door=self.door,
            request_factory=requests_of_upgrades(made.request_factory),
            handler_cancellation=False,  # a client that goes away does not undo a commit
        )
