"""The headers of answers, for the API's description: what each says, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.answers import OneTrip
from dispatcher.web.endpoints import Endpoint

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}


def _header(description: str, schema: Mapping[str, Any], example: Any) -> dict[str, Any]:
    return {"description": description, "schema": dict(schema), "example": example}


_LIMIT: Final = {
    "X-RateLimit-Limit": _header("Calls that the limit admits in its window", _COUNT, 120),
    "X-RateLimit-Remaining": _header("Calls that remain", _COUNT, 119),
    "X-RateLimit-Reset": _header("When it eases, in s since the epoch", _COUNT, 1_772_353_860),
    "RateLimit-Policy": _header(
        "The limit, as the IETF draft writes it: calls and window in s", _TEXT, '"general";q=120;w=60'
    ),
    "RateLimit": _header(
        "What is left of it, as the IETF draft writes it: calls, and s until it eases", _TEXT,
        '"general";r=119;t=60',
    ),
}  # fmt: skip
_REQUEST_ID: Final = {
    "X-Request-Id": _header("The request's own id, or one of the server: log lines name it", _TEXT,
                            "5b0c1f9a3e-2a"),
}  # fmt: skip
_KEY: Final = {"Idempotency-Key": _header("The request's key, if it had one", _TEXT, "accept-1")}
#: Statuses of refusals that a key keeps.
_KEPT: Final = frozenset(problem.status for problem in PROBLEMS.values() if problem.kept)
_REPLAY: Final = {
    "X-Idempotent-Replay": _header(
        "The answer that this key got before; nothing has happened again", {"const": "true"}, "true"
    ),
}
_TAG: Final = {
    "ETag": _header("The trip's version, or what stands for the page's bytes, in quotes",
                    {**_TEXT, "pattern": '^"[0-9a-f]+"$'}, '"1"'),
    "Cache-Control": _header("To be asked for each time, with `If-None-Match`", _TEXT,
                             "private, no-cache"),
}  # fmt: skip
_RETRY_AFTER: Final = {
    "Retry-After": _header(
        "Seconds after which to try again, where that helps", {"type": "integer", "minimum": 1}, 1
    )
}
_CHALLENGE: Final = {
    "WWW-Authenticate": _header("How to sign in (RFC 6750)", _TEXT, 'Bearer realm="dispatcher"')
}
_UPGRADE: Final = {"Upgrade": _header("What to ask for instead", {"const": "websocket"}, "websocket")}
_PAGE: Final = {
    "Content-Security-Policy": _header(
        "Nothing but this server's own files", _TEXT, "default-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": _header("The page stands alone", _TEXT, "same-origin"),
    "Permissions-Policy": _header("What the page never asks for", _TEXT, "geolocation=()"),
    "Referrer-Policy": _header("No address of the page is told", _TEXT, "no-referrer"),
    "X-Content-Type-Options": _header("The type is as it says", _TEXT, "nosniff"),
}
_LOCATION: Final = {"Location": _header("Where it leads", _TEXT, "console")}

#: Every header, by its name.
HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    **_REQUEST_ID, **_LIMIT, **_KEY, **_REPLAY, **_TAG, **_RETRY_AFTER, **_CHALLENGE, **_UPGRADE,
    **_PAGE, **_LOCATION,
}  # fmt: skip


def header_names(endpoint: Endpoint, status: int) -> list[str]:
    """The headers that an answer of the endpoint with this status may have."""
    names = [*_REQUEST_ID]
    # A refusal is counted wherever it is made; what is the server's own fault is not.
    if (endpoint.role is not None and status < 400) or 400 <= status < 500:
        names += _LIMIT
    if endpoint.body:
        names += _KEY
    if endpoint.is_change and (status < 400 or status in _KEPT):
        names += _REPLAY
    if (endpoint.answer is OneTrip or endpoint.is_page) and status in (200, 304):
        names += _TAG
    if endpoint.is_page and status in (200, 304):
        names += _PAGE
    if status == 426:
        names += _UPGRADE
    if status in (409, 429, 503):
        names += _RETRY_AFTER
    if status == 401:
        names += _CHALLENGE
    if status == 302:
        names += _LOCATION
    return names
