"""The runner: aiohttp's own, with shorter ways, and problems for what is no HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final, cast

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from dispatcher.core.errors import Refusal
from dispatcher.web.reply import Reply
from dispatcher.web.responses import refusal_reply

_log = structlog.get_logger("dispatcher.web")

#: How long the rest of a refused body is read and dropped, so that the client sees the answer.
_LINGER_S = 5.0
_CONTINUE = "100-continue"


#: Handlers of POST by raw path, for the routes whose path is fixed: aiohttp's router takes longer.
FIXED: Final = web.AppKey("fixed", dict[str, Handler])


class _WithoutTasks:
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
        return coroutine


class _Protocol(web.RequestHandler):  # one connection
    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if sys.version_info < (3, 12):
            self._loop = cast(asyncio.AbstractEventLoop, _WithoutTasks(self._loop))

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
            reply = refusal_reply(Refusal("internal_error"))
        else:
            _log.debug("Malformed request", reason=message, peer=request.remote)
            reply = refusal_reply(Refusal("malformed_request"))
        reply.keep_alive = False
        return reply.as_response()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse | Reply, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends a response. What aiohttp raised before any handler ran becomes a problem."""
        if isinstance(resp, web.HTTPException):  # an expectation that nobody knows, or `OPTIONS *`
            resp = refusal_reply(Refusal("malformed_request", resp.reason))
        if not isinstance(resp, Reply):
            return await super().finish_response(request, resp, start_time)
        if self._upgraded or not resp.can_be_whole(request):
            return await super().finish_response(request, resp.as_response(), start_time)
        resp.keep_alive = resp.keep_alive and request.keep_alive
        transport = self.transport
        is_gone = transport is None or transport.is_closing()
        if transport is not None and not is_gone:
            transport.write(resp.encode())
            if self._paused:  # a client that does not read
                await self._drain_helper()
        # aiohttp's loop asks it whether to keep the connection, and nothing else.
        return cast(web.StreamResponse, resp), is_gone


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(
            self,
            loop=asyncio.get_running_loop(),
            # Slow and failed requests are logged around the handlers.
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,  # encoded bodies are refused, not inflated
            lingering_time=_LINGER_S,
        )


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        fixed, by_router = self.app[FIXED], made.request_handler

        async def handle(request: web.Request) -> web.StreamResponse:
            if request.method == hdrs.METH_POST and hdrs.EXPECT not in request.headers:
                handler = fixed.get(request.raw_path)
                if handler is not None:
                    return await handler(request)
            return await by_router(request)

        return _Server(
            cast(Any, handle),
            request_factory=made.request_factory,
            handler_cancellation=False,  # a client that goes away does not undo a commit
        )


def make_runner(app: web.Application, *, shutdown_timeout_s: float = 10.0) -> web.AppRunner:
    """A runner for the application; `shutdown_timeout_s` is for requests that are being answered."""
    return _Runner(app, shutdown_timeout=shutdown_timeout_s)
