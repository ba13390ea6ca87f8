"""HTTP responses made of answers, refusals and documents: headers for limits, replays and problems."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitState
from dispatcher.core.trips import Trip
from dispatcher.service.answers import OK_CODE, Answer
from dispatcher.web.auth import challenge

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
#: Instead of aiohttp's own, which names versions.
SERVER: Final = "dispatcher"


class HttpResponse:
    """Status, headers and body, complete when it is made.

    aiohttp's response, which can also stream, costs six times as much: `fastpath` writes this one.
    """

    __slots__ = ("action", "body", "code", "headers", "keep_alive", "limit", "status")

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.keep_alive = True
        #: Told by headers of its own, which `limit_lines` has.
        self.limit: LimitState | None = None
        #: The `response_code` of the body, for the metrics.
        self.code = OK_CODE
        #: What was asked for, for the metrics, where the endpoint does not say it.
        self.action: str | None = None

    def to_aiohttp(self) -> web.Response:
        """The same as a response of aiohttp's, which knows HTTP/1.0, HEAD and empty bodies."""
        headers = {**self.headers, hdrs.SERVER: SERVER}
        if self.limit is not None:
            for line in limit_lines(self.limit).splitlines():
                name, _, headers[name] = line.partition(": ")
        response = web.Response(body=self.body, status=self.status, headers=headers)
        if not self.keep_alive:
            response.force_close()
        return response


def answer_response(answer: Answer) -> HttpResponse:
    """The answer of a service."""
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: JSON if answer.status < 400 else PROBLEM}
    if answer.replayed:
        headers["X-Idempotent-Replay"] = "true"
    if answer.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(answer.retry_after_s)
    response = HttpResponse(answer.status, answer.body, headers)
    response.limit, response.code = answer.limit, answer.code
    return response


def refusal_response(refusal: Refusal, answer: Answer) -> HttpResponse:
    """The answer to a call that was refused; a 401 and a 426 say what to send instead."""
    response = answer_response(answer)
    if response.status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = challenge(refusal)
    elif response.status == 426:
        response.headers |= {hdrs.UPGRADE: "websocket", hdrs.CONNECTION: hdrs.UPGRADE}
    return response


def json_response(data: Any, limit: LimitState | None = None) -> HttpResponse:
    """Any JSON document."""
    return answer_response(Answer(200, orjson.dumps(data, default=str), limit))


def trip_response(request: web.Request, trip: Trip, limit: LimitState | None) -> HttpResponse:
    """A trip with the `ETag` of its version, or 304 where the client has that (RFC 9110, 13.1.2)."""
    tags = request.if_none_match or ()
    is_known = any(tag.value in ("*", str(trip.version)) for tag in tags)
    if is_known:
        response = answer_response(Answer(304, b"", limit))
        del response.headers[hdrs.CONTENT_TYPE]
    else:
        response = answer_response(Answer(200, orjson.dumps({"trip": trip.to_json()}), limit))
    response.headers[hdrs.ETAG] = f'"{trip.version}"'
    response.headers[hdrs.CACHE_CONTROL] = "private, no-cache"
    return response


def content_response(body: bytes, content_type: str, **headers: str) -> HttpResponse:
    """Any other content."""
    return HttpResponse(200, body, {hdrs.CONTENT_TYPE: content_type, **headers})


def limit_lines(limit: LimitState) -> str:
    """The lines of a head that tell how a limit stands; each ends with a line break."""
    # draft-ietf-httpapi-ratelimit-headers: q and w are the policy, r and t what is left of it.
    name, (quota, window_s), remaining, reset_ms, now_ms = limit
    eases_in_s = -((now_ms - reset_ms) // 1000)
    if eases_in_s > window_s:
        eases_in_s = window_s
    elif eases_in_s < 0:
        eases_in_s = 0
    return (
        f"X-RateLimit-Limit: {quota}\r\nX-RateLimit-Remaining: {remaining}\r\n"
        f"X-RateLimit-Reset: {-(-reset_ms // 1000)}\r\n"
        f'RateLimit-Policy: "{name}";q={quota};w={window_s}\r\n'
        f'RateLimit: "{name}";r={remaining};t={eases_in_s}\r\n'
    )
