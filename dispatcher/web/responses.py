"""HTTP responses made of answers, refusals and documents: headers for limits, replays and problems."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage

from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitState
from dispatcher.core.trips import Trip
from dispatcher.service.answers import OK_CODE, Answer
from dispatcher.web.auth import challenge

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
#: Instead of aiohttp's own, which names versions.
SERVER: Final = "dispatcher"
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
#: Their head is another one: aiohttp's own response knows how.
_WITHOUT_BODY: Final = frozenset({204, 304})


class HttpResponse:
    """Status, headers and body, complete when it is made.

    aiohttp's response, which can also stream, costs six times as much: `encode` writes this one.
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
