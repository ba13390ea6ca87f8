"""Answers of the services as HTTP responses: headers for limits, replays and problems."""

from __future__ import annotations

from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitState
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.web.auth import challenge
from dispatcher.web.reply import Reply

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


def to_reply(answer: Answer) -> Reply:
    """The reply that an answer becomes."""
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: JSON if answer.status < 400 else PROBLEM}
    if answer.limit is not None:
        _add_limit(headers, answer.limit)
    if answer.replayed:
        headers["X-Idempotent-Replay"] = "true"
    if answer.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(answer.retry_after_s)
    return Reply(answer.status, answer.body, headers)


def refusal_reply(refusal: Refusal) -> Reply:
    """The reply that a refusal becomes."""
    reply = to_reply(refusal_answer(refusal))
    if reply.status == 401:
        reply.headers[hdrs.WWW_AUTHENTICATE] = challenge(refusal)
    return reply


def json_reply(data: Any, limit: LimitState | None = None) -> Reply:
    """A success with a body of its own."""
    return to_reply(Answer(200, orjson.dumps(data, default=str), limit))


def trip_reply(
    request: web.Request, body: dict[str, Any], version: int, limit: LimitState | None
) -> Reply:
    """A trip with the `ETag` of its version, or 304 where the client has that (RFC 9110, 13.1.2)."""
    wanted = request.if_none_match or ()
    fresh = any(tag.value in ("*", str(version)) for tag in wanted)
    reply = to_reply(Answer(304 if fresh else 200, b"" if fresh else orjson.dumps(body), limit))
    if fresh:
        del reply.headers[hdrs.CONTENT_TYPE]
    reply.headers[hdrs.ETAG] = f'"{version}"'
    reply.headers[hdrs.CACHE_CONTROL] = "private, no-cache"
    return reply


def text_reply(body: bytes, content_type: str, **headers: str) -> Reply:
    """Any other content."""
    return Reply(200, body, {hdrs.CONTENT_TYPE: content_type, **headers})


def _add_limit(headers: dict[str, str], limit: LimitState) -> None:
    # draft-ietf-httpapi-ratelimit-headers: q and w are the policy, r and t what is left of it.
    name, (quota, window_s), left = limit.name, limit.rate, limit.remaining
    headers["X-RateLimit-Limit"] = str(quota)
    headers["X-RateLimit-Remaining"] = str(left)
    headers["X-RateLimit-Reset"] = str(-(-limit.reset_ms // 1000))
    headers["RateLimit-Policy"] = f'"{name}";q={quota};w={window_s}'
    left_s = max(0, min(window_s, -((limit.now_ms - limit.reset_ms) // 1000)))
    headers["RateLimit"] = f'"{name}";r={left};t={left_s}'
