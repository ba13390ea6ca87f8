"""Answers of the services as HTTP responses: headers for limits, replays and problems."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from dispatcher.core.errors import Refusal
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.store.scripts import LimitState
from dispatcher.web.auth import challenge

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
#: Instead of aiohttp's own, which names versions.
SERVER: Final = "dispatcher"

_LIMIT: Final = istr("X-RateLimit-Limit")
_REMAINING: Final = istr("X-RateLimit-Remaining")
_RESET: Final = istr("X-RateLimit-Reset")
_POLICY: Final = istr("RateLimit-Policy")
_STATE: Final = istr("RateLimit")
_REPLAY: Final = istr("X-Idempotent-Replay")


def to_response(answer: Answer) -> web.Response:
    """The response that an answer becomes."""
    headers: CIMultiDict[str] = CIMultiDict()
    headers[hdrs.CONTENT_TYPE] = JSON if answer.status < 400 else PROBLEM
    headers[hdrs.SERVER] = SERVER
    if answer.limit is not None:
        _add_limit(headers, answer.limit)
    if answer.replayed:
        headers[_REPLAY] = "true"
    if answer.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(answer.retry_after_s)
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def refusal_response(refusal: Refusal) -> web.Response:
    """The response that a refusal becomes."""
    response = to_response(refusal_answer(refusal))
    if response.status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = challenge(refusal)
    return response


def json_response(data: Any, limit: LimitState | None = None) -> web.Response:
    """A success with a body of its own."""
    return to_response(Answer(200, orjson.dumps(data, default=str), limit))


def trip_response(
    request: web.Request, body: dict[str, Any], version: int, limit: LimitState | None
) -> web.Response:
    """A trip with the `ETag` of its version, or 304 where the client has that (RFC 9110, 13.1.2)."""
    wanted = request.if_none_match or ()
    fresh = any(tag.value in ("*", str(version)) for tag in wanted)
    response = to_response(Answer(304 if fresh else 200, b"" if fresh else orjson.dumps(body), limit))
    if fresh:
        del response.headers[hdrs.CONTENT_TYPE]
    response.headers[hdrs.ETAG] = f'"{version}"'
    response.headers[hdrs.CACHE_CONTROL] = "private, no-cache"
    return response


def text_response(body: bytes, content_type: str, **headers: str) -> web.Response:
    """Any other content."""
    fixed: dict[str, str] = {hdrs.CONTENT_TYPE: content_type, hdrs.SERVER: SERVER}
    return web.Response(body=body, headers={**fixed, **headers})


def _add_limit(headers: CIMultiDict[str], limit: LimitState) -> None:
    # draft-ietf-httpapi-ratelimit-headers: q and w are the policy, r and t what is left of it.
    name, (quota, window_s), left = limit.name, limit.rate, limit.remaining
    headers[_LIMIT] = str(quota)
    headers[_REMAINING] = str(left)
    headers[_RESET] = str(-(-limit.reset_ms // 1000))
    headers[_POLICY] = f'"{name}";q={quota};w={window_s}'
    left_s = max(0, min(window_s, -((limit.now_ms - limit.reset_ms) // 1000)))
    headers[_STATE] = f'"{name}";r={left};t={left_s}'
