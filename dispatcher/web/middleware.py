"""Around every request: its id, its problems, its metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.observe import Metrics
from dispatcher.store.scripts import LimitState
from dispatcher.web.answers import refusal_response
from dispatcher.web.idempotency import IDEMPOTENCY_KEY

_log = structlog.get_logger("dispatcher.web")

REQUEST_ID: Final = istr("X-Request-Id")
_SANE: Final = re.compile(r"[A-Za-z0-9._:@=+/-]{1,128}")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
#: Slower requests are logged. A commit may take 5 s; from 1 s on, somebody should know.
_SLOW_S: Final = 1.0
#: When to ask again after an outage of a moment; balancers take longer to notice.
_RETRY_S: Final = 1
_PREFIX_BYTES: Final = 5  # of chance, so that ids of other processes differ

CountStranger = Callable[[web.Request], Awaitable[LimitState | None]]


def make_middleware(metrics: Metrics, count_lost: CountStranger) -> Middleware:
    """The middleware; `count_lost` counts calls of addresses that do not exist."""
    prefix, numbers = os.urandom(_PREFIX_BYTES).hex(), count(1)
    count_request, clock = metrics.count_request, time.perf_counter

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = clock()
        request_id = request.headers.get(REQUEST_ID)
        if request_id is None or not _SANE.fullmatch(request_id):
            request_id = f"{prefix}-{next(numbers):x}"
        try:
            response = await handler(request)
        except Exception as error:
            response = await _problem(request, error, request_id, count_lost)
        if response.prepared:  # a socket that has ended
            return response
        headers = response.headers
        headers[REQUEST_ID] = request_id
        key = request.headers.get(IDEMPOTENCY_KEY)
        if key is not None and _PRINTABLE.fullmatch(key):
            headers[IDEMPOTENCY_KEY] = key
        took_s, status = clock() - started, response.status
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else ""
        # A stranger may send any method: only those of known addresses become labels.
        count_request(request.method if route else "", route, status, took_s)
        if took_s > _SLOW_S or status >= 500:
            _log.warning(
                "Slow request" if status < 500 else "Request not served",
                method=request.method, route=route, status=status, took_ms=round(took_s * 1000),
                request_id=request_id,
            )  # fmt: skip
        return response

    return around


async def _problem(
    request: web.Request, error: Exception, request_id: str, count_lost: CountStranger
) -> web.StreamResponse:
    match error:
        case Refusal():
            return refusal_response(error)
        case web.HTTPException():
            return await _lost(request, error, count_lost)
        case OutcomeUnknown():
            return refusal_response(Refusal("outcome_unknown", retry_after=_RETRY_S))
        case StoreUnavailable():
            return refusal_response(Refusal("service_unavailable", retry_after=_RETRY_S))
        case ConnectionError():
            raise error  # the client is gone
        case _:
            _log.error("Request failed", request_id=request_id, path=request.path, exc_info=error)
            return refusal_response(Refusal("internal_error"))


async def _lost(
    request: web.Request, error: web.HTTPException, count_lost: CountStranger
) -> web.StreamResponse:
    """No such address, or not with this method."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status, "malformed_request")
    refusal = Refusal(code)
    try:
        refusal.limit = await count_lost(request)
    except Refusal as limited:
        return refusal_response(limited)
    except StoreUnavailable:
        pass  # there is nothing at this address, whoever is away
    response = refusal_response(refusal)
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed_methods))
    return response
