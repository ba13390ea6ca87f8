"""Answers as HTTP responses: the headers that tell of limits, replays and versions."""

from __future__ import annotations

import math
from typing import Any, Final

import orjson
from aiohttp import web
from multidict import CIMultiDict

from dispatcher.core.errors import Refusal
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.store.scripts import LimitState

_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
#: RFC 6750, 3: what a client did wrong with its token.
_CHALLENGES: Final = {
    "missing_token": "Bearer",
    "invalid_token": 'Bearer error="invalid_token"',
    "token_expired": 'Bearer error="invalid_token", error_description="expired"',
}


def limit_headers(headers: CIMultiDict[str], limit: LimitState) -> None:
    """`X-RateLimit-*`, and `RateLimit` with its policy (IETF httpapi draft)."""
    most, window_s = limit.rate
    headers["X-RateLimit-Limit"] = str(most)
    headers["X-RateLimit-Remaining"] = str(limit.remaining)
    headers["X-RateLimit-Reset"] = str(-(-limit.reset_ms // 1000))
    headers["RateLimit-Policy"] = f'"{limit.name}";q={most};w={window_s}'
    seconds = min(window_s, max(0, -(-(limit.reset_ms - limit.now_ms) // 1000)))
    headers["RateLimit"] = f'"{limit.name}";r={limit.remaining};t={seconds}'


def respond(answer: Answer, key: str | None = None) -> web.Response:
    """The response to a change: its body is sent as it is."""
    headers: CIMultiDict[str] = CIMultiDict()
    headers["Server"] = "dispatcher"
    headers["Content-Type"] = _JSON if answer.status < 400 else _PROBLEM
    if answer.limit is not None:
        limit_headers(headers, answer.limit)
    if key is not None:
        headers["Idempotency-Key"] = key
    if answer.replayed:
        headers["X-Idempotent-Replay"] = "true"
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(answer.retry_after_s))
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def respond_json(document: Any, limit: LimitState | None, status: int = 200) -> web.Response:
    """The response to a question."""
    return respond(Answer(status, orjson.dumps(document), limit))


def respond_refusal(refusal: Refusal, limit: LimitState | None = None) -> web.Response:
    """A refusal as a response, with the challenge that a 401 needs."""
    response = respond(refusal_answer(refusal, limit))
    challenge = _CHALLENGES.get(refusal.code)
    if challenge:
        response.headers["WWW-Authenticate"] = challenge
    return response
