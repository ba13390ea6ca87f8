"""The runner: aiohttp's own, but what is no HTTP is answered as a problem too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
from aiohttp import hdrs, web

from dispatcher.core.errors import Refusal
from dispatcher.web.answers import refusal_response

_log = structlog.get_logger("dispatcher.web")

#: How long the rest of a refused body is read and dropped, so that the client sees the answer.
_LINGER_S = 5.0
_CONTINUE = "100-continue"


class _Protocol(web.RequestHandler):  # one connection
    __slots__ = ()

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
            response = refusal_response(Refusal("internal_error"))
        else:
            _log.debug("Malformed request", reason=message, peer=request.remote)
            response = refusal_response(Refusal("malformed_request"))
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Sends a response. What aiohttp raised before any handler ran becomes a problem."""
        if isinstance(resp, web.HTTPException):  # an expectation that nobody knows, or `OPTIONS *`
            resp = refusal_response(Refusal("malformed_request", resp.reason))
        return super().finish_response(request, resp, start_time)


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
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=False,  # a client that goes away does not undo a commit
        )


def make_runner(app: web.Application, *, shutdown_timeout_s: float = 10.0) -> web.AppRunner:
    """A runner for the application; `shutdown_timeout_s` is for requests that are being answered."""
    return _Runner(app, shutdown_timeout=shutdown_timeout_s)
