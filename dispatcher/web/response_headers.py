"""The headers of answers, for the API's description: what each says, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
_CHANGE: Final = {
    "Idempotency-Key": _header("The request's key, if it had one", _TEXT, "accept-1"),
    "X-Idempotent-Replay": _header(
        "The answer that this key got before; nothing has happened again", {"const": "true"}, "true"
    ),
}
_TRIP: Final = {
    "ETag": _header("The trip's version, in quotes", {**_TEXT, "pattern": '^"\\d+"$'}, '"1"'),
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
_LOCATION: Final = {"Location": _header("Where it leads", _TEXT, "console")}

#: Every header, by its name.
HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    **_REQUEST_ID, **_LIMIT, **_CHANGE, **_TRIP, **_RETRY_AFTER, **_CHALLENGE, **_LOCATION,
}  # fmt: skip


def header_names(endpoint: Endpoint, status: int) -> list[str]:
    """The headers that an answer of the endpoint with this status may have."""
    names = [*_REQUEST_ID]
    # Other refusals have them as well, which would fill a page for each endpoint.
    if endpoint.role is not None and (status < 400 or status == 429):
        names += _LIMIT
    if endpoint.is_change and (status < 400 or status == 409):
        names += _CHANGE
    if endpoint.answer is OneTrip and status in (200, 304):
        names += _TRIP
    if status in (409, 429, 503):
        names += _RETRY_AFTER
    if status == 401:
        names += _CHALLENGE
    if status == 302:
        names += _LOCATION
    return names
