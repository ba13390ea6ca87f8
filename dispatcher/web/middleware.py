"""Around every handler: the request's id, its problems, its metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.observe.metrics import Metrics
from dispatcher.web.idempotency_key import IDEMPOTENCY_KEY
from dispatcher.web.reply import Reply
from dispatcher.web.responses import refusal_reply

_log = structlog.get_logger("dispatcher.web")

REQUEST_ID: Final = istr("X-Request-Id")
_SANE: Final = re.compile(r"[A-Za-z0-9._:@=+/-]{1,128}")
#: Slower requests are logged. A commit may take 5 s; from 1 s on, somebody should know.
_SLOW_S: Final = 1.0
#: When to ask again after an outage of a moment; balancers take longer to notice.
_RETRY_S: Final = 1
_PREFIX_BYTES: Final = 5  # of chance, so that ids of other processes differ

#: A handler of ours, or one that has a socket of its own.
Answering = Callable[[web.Request], Awaitable[Reply | web.StreamResponse]]
Around = Callable[[str, Answering], Handler]


def make_around(metrics: Metrics) -> Around:
    """What wraps each handler, by the route that its metrics are named after.

    Not one of aiohttp's middlewares: their machinery costs as much as all that is done here.
    """
    prefix, numbers = os.urandom(_PREFIX_BYTES).hex(), count(1)
    count_request, clock = metrics.count_request, time.perf_counter

    def around(route: str, handler: Answering) -> Handler:
        async def answered(request: web.Request) -> Any:
            started = clock()
            given = request.headers
            request_id = given.get(REQUEST_ID)
            if request_id is None or not _SANE.fullmatch(request_id):
                request_id = f"{prefix}-{next(numbers):x}"
            try:
                response = await handler(request)
            except Exception as error:
                response = _problem(request, error, request_id)
            if not isinstance(response, Reply):  # a socket that has ended
                return response
            headers = response.headers
            headers[REQUEST_ID] = request_id
            key = given.get(IDEMPOTENCY_KEY)
            if key is not None and key.isascii() and key.isprintable():
                headers[IDEMPOTENCY_KEY] = key
            took_s, status = clock() - started, response.status
            # A stranger may send any method: only those of known addresses become labels.
            count_request(request.method if route else "", route, status, took_s)
            if took_s > _SLOW_S or status >= 500:
                _log.warning(
                    "Slow request" if status < 500 else "Request not served",
                    method=request.method, route=route, status=status,
                    took_ms=round(took_s * 1000), request_id=request_id,
                )  # fmt: skip
            return response

        return answered

    return around


def _problem(request: web.Request, error: Exception, request_id: str) -> Reply:
    match error:
        case Refusal():
            return refusal_reply(error)
        case OutcomeUnknown():
            return refusal_reply(Refusal("outcome_unknown", retry_after=_RETRY_S))
        case StoreUnavailable():
            return refusal_reply(Refusal("service_unavailable", retry_after=_RETRY_S))
        case ConnectionError():
            raise error  # the client is gone
        case _:
            _log.error("Request failed", request_id=request_id, path=request.path, exc_info=error)
            return refusal_reply(Refusal("internal_error"))
