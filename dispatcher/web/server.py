"""aiohttp's server, with its own refusals in our form."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from dispatcher.core.errors import Refusal
from dispatcher.web.answers import respond_refusal


class _Protocol(RequestHandler):
    """A request that cannot be parsed never reaches a handler; it is refused here."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The problem for a request that aiohttp refuses."""
        if status >= 500:
            self.log_exception("Error handling request from %s", request.remote, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = respond_refusal(Refusal("malformed_request" if status < 500 else "internal_error"))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> Any:
        return _Protocol(self, loop=asyncio.get_running_loop(), **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application with `_Protocol`."""

    __slots__ = ()

    async def _make_server(self) -> Any:
        self._app.on_startup.freeze()
        await self._app.startup()
        self._app.freeze()
        return _Server(
            self._app._handle,  # type: ignore[arg-type]  # as AppRunner itself does
            request_factory=self._app._make_request,
            **self._kwargs,
        )
