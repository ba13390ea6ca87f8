"""The loop over the calls of a connection, in the place of aiohttp's.

aiohttp's own has two coroutines, a timer and, up to Python 3.11, a task and a turn of the event loop for
each call; this one has none of them, which spares some 5 us. How long a connection may take is for the
door to say. What is leant on inside aiohttp, and is held by `tests/unit/test_connection.py`:

- `RequestHandler.connection_made` makes one task of `start`, and `shutdown` waits for it;
- `data_received` puts what it parsed into `_messages`, and wakes `_waiter`; what could not be parsed is
  no RawRequestMessage, and has `status`, `exc` and `message`;
- a parser is told of each message that was taken (`message_consumed`), and a connection that holds too
  many reads on at `_resume_reading_if_drained`;
- `shutdown` waits for `_handler_waiter` while `_request_in_progress`, and then, as `connection_lost`,
  ends whoever reads the body of `_current_request`;
- `_request_factory` makes each request, whose `_message` says whether the connection is to close;
- `_upgraded` is true from a request that asks for an upgrade until its answer by `finish_response`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.web_protocol import ERROR

from dispatcher.core.errors import Refusal
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID
from dispatcher.observe.series import ACTIONS
from dispatcher.service.answers import refusal_answer
from dispatcher.web.action_counts import HTTP, UNKNOWN
from dispatcher.web.guarded_connection import GuardedConnection
from dispatcher.web.responses import HttpResponse, answer_response, can_encode, encode

_log = structlog.get_logger("dispatcher.web")

_CONTINUE: Final = "100-continue"
_Respond = Callable[[web.Request], Awaitable[Any]]


class Connection(GuardedConnection):
    """One connection, of one call after the other."""

    __slots__ = ()

    async def start(self) -> None:
        """Answers calls until the connection ends."""
        try:
            await self._answer_calls()
        except ConnectionError:
            pass  # the client is gone
        except Exception as error:
            _log.error("Connection failed", exc_info=error)
        finally:
            self.force_close()

    def announce_end(self) -> None:
        """The answer to the call that has come, or else to the next one, is the last, and says so."""
        if self._request_factory is not None:
            self._request_factory = last_calls(self._request_factory)
        request: Any = self._current_request
        if request is not None and request._message is not None:  # a WebSocket has none any more
            request._message = _as_last(request._message)

    async def _answer_calls(self) -> None:
        is_kept: bool | None = True
        while is_kept and not (self._close or self._force_close):
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
                if self.transport is None:
                    return  # the client has sent a call, and left before it was taken
            request, respond = self._take_call()
            self._request_in_progress, self._current_request = True, request
            try:
                try:
                    response = await respond(request)
                except Exception as error:
                    response = self._response_to(error, request)
                self._current_request = None
                is_kept = self._write(response, request)
                if is_kept is None:
                    is_kept = await self._send_by_aiohttp(response, request)
                elif self._paused:  # a client that does not read
                    await request.writer.drain()
            finally:
                self._request_in_progress, self._current_request = False, None
                if self._handler_waiter is not None and not self._handler_waiter.done():
                    self._handler_waiter.set_result(None)
            if not request._payload.is_eof():
                is_kept = await self._drop_body(request) and is_kept
            del request, respond, response

    def _take_call(self) -> tuple[web.Request, _Respond]:
        """The next call, and what answers it."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        respond: Any = self._request_handler
        if isinstance(message, RawRequestMessage):
            self.allowance.left -= 1
            if self.allowance.left < 1 or self.is_watched or self._messages:
                respond = self._respond_if_admitted
        else:
            message, respond = ERROR, self._make_error_handler(cast(Any, message))
        make_request: Any = self._request_factory
        writer = StreamWriter(self, self._loop)
        return make_request(message, payload, self, writer, self._task_handler), respond

    async def _respond_if_admitted(self, request: web.Request) -> Any:
        respond = cast(_Respond, self._request_handler)
        refused = await self.check_call(request)
        return refused if refused is not None else await respond(request)

    def _write(self, response: Any, request: web.BaseRequest) -> bool | None:
        """Sends a response in one write: whether the connection stays, None where it takes aiohttp."""
        message = request._message
        if type(response) is not HttpResponse or self._upgraded or not can_encode(response, message):
            return None
        if message.should_close:
            response.keep_alive = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.write(encode(response))
        return response.keep_alive

    def _response_to(self, error: Exception, request: web.BaseRequest) -> Any:
        """The answer to what was raised around the handlers; ConnectionError again: a client is gone."""
        if isinstance(error, web.HTTPException):  # an expectation that nobody knows, or `OPTIONS *`
            return problem("malformed_request", error.reason)
        return self.handle_error(request, 500, error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what the parser could not read, or what failed outside of any handler."""
        if isinstance(exc, ConnectionError):
            raise exc  # nobody waits for an answer
        if request.writer.output_size > 0:
            raise ConnectionError("the response was already on its way")
        if request.headers.get(hdrs.EXPECT, _CONTINUE).lower() != _CONTINUE:
            status = 400  # aiohttp trips over the text of an expectation that it does not know
        if status >= 500:
            _log.error("Connection failed", exc_info=exc)
            response = problem("internal_error")
        else:
            REQUEST_ID.set("")  # those of the call before
            TRIP_ID.set("")
            _log.debug("Malformed request", reason=message, peer=request.remote)
            response = problem("malformed_request")
        ACTIONS.add(HTTP, UNKNOWN, response.code)
        response.keep_alive = False
        return response.to_aiohttp()

    async def _send_by_aiohttp(self, response: Any, request: web.BaseRequest) -> bool:
        """Sends what `encode` does not write; False where the connection ends with it."""
        if isinstance(response, HttpResponse):
            response = response.to_aiohttp()
        _, is_gone = await self.finish_response(request, response, None)
        return bool(response.keep_alive) and not is_gone

    async def _drop_body(self, request: web.BaseRequest) -> bool:
        """Reads what is left of a refused body, so that the client sees the answer; whether it came."""
        if self._force_close:
            return False
        payload = request.content
        self._current_request = request  # a client that leaves ends it
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof():
                    await payload.readany()
        except (OSError, web.RequestPayloadError):  # TimeoutError is an OSError
            return False
        finally:
            self._current_request = None
        return True


def last_calls(make_request: Callable[..., Any]) -> Callable[..., Any]:
    """A `request_factory` for calls whose answer is the last of their connection, made of another."""
    return lambda message, *others: make_request(_as_last(message), *others)


def _as_last(message: Any) -> Any:
    """The call as if its client had sent `Connection: close`."""
    return message._replace(should_close=True)


def problem(code: str, message: str | None = None) -> HttpResponse:
    """The answer to what never reached a handler."""
    return answer_response(refusal_answer(Refusal(code, message)))
