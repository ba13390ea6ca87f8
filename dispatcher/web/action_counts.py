"""Counts what is answered, by action and response code, over HTTP and by frame.

An action is an endpoint's name, a frame's type, or the word of a step with a trip, so that an accept
is an accept whichever way it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dispatcher.core import transitions
from dispatcher.observe.series import ACTION_SECONDS, ACTIONS
from dispatcher.service.answers import OK_CODE
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.refusal_codes import codes_of

HTTP: Final = "http"
WS: Final = "ws"
#: The name of the endpoint and the type of the frame that say by a word what is to be done.
TRIP_ACTION: Final = "trip_action"
#: What no endpoint and no frame is meant by, as far as the server can tell.
UNKNOWN: Final = "unknown"
#: The words; a client may send any other, which is no label.
WORDS: Final = frozenset({"decline", *(word for _, word in transitions.ACTIONS)})

#: The codes of success, by action; all others answer documents.
_SUCCESSES: Final[dict[str, tuple[str, ...]]] = {
    "create": ("trip_created",),
    "cancel": ("trip_cancelled", "trip_released"),
    "admin_cancel": ("trip_cancelled",),
    "end": ("trip_completed",),
    "admin_end": ("trip_completed",),
    "accept": ("trip_accepted",),
    "assign": ("trip_accepted",),
    "decline": ("trip_declined",),
    "arrive": ("trip_arrived",),
    "start": ("trip_started",),
    "complete": ("trip_completed",),
    "availability": ("availability_updated",),
    "force_offline": ("availability_updated",),
    "location": ("location_updated",),
    "heartbeat": ("heartbeat",),
    "watch": ("watching",),
    "unwatch": ("not_watching",),
    "auth": ("token_renewed",),
    TRIP_ACTION: (),
    UNKNOWN: (),
}  # fmt: skip
_STRANGE_CALLS: Final = (
    "not_found", "method_not_allowed", "malformed_request", "too_many_calls", "too_many_connections",
    "rate_limit_exceeded", "service_unavailable",
)  # fmt: skip
_STRANGE_FRAMES: Final = (
    "malformed_json", "invalid_frame", "unknown_frame_type", "too_many_frames", "binary_frame",
)  # fmt: skip
_TOKEN_CODES: Final = ("missing_token", "invalid_token", "token_expired", "rate_limit_exceeded")
_WATCH_CODES: Final = ("wrong_role", "invalid_zone")


def count_action(transport: str, action: str, code: str, took_s: float) -> None:
    """A call or frame was answered."""
    ACTIONS.numbers[transport, action, code] += 1
    ACTION_SECONDS.of(transport, action).observe(took_s)


def word_or(action: str, word: object) -> str:
    """The word of a step with a trip where it is one that there is, and else the action itself."""
    return word if isinstance(word, str) and word in WORDS else action


def _know(transport: str, action: str, refusals: Iterable[str]) -> None:
    codes = dict.fromkeys((*_SUCCESSES.get(action, (OK_CODE,)), *refusals))
    ACTIONS.know((transport, action, code) for code in codes)
    ACTION_SECONDS.know([(transport, action)])


def _know_all() -> None:
    refusals = {endpoint.name: codes_of(endpoint) for endpoint in ENDPOINTS}
    for name, codes in refusals.items():
        _know(HTTP, name, codes)
    for transport in (HTTP, WS):
        for word in WORDS:
            _know(transport, word, refusals[TRIP_ACTION])
    _know(HTTP, UNKNOWN, _STRANGE_CALLS)
    for name in ("location", "availability"):
        _know(WS, name, refusals[name])
    _know(WS, "heartbeat", ())
    _know(WS, "watch", _WATCH_CODES)
    _know(WS, "unwatch", ())
    _know(WS, "auth", (*_TOKEN_CODES, *_STRANGE_FRAMES, "internal_error", "service_unavailable"))
    _know(WS, TRIP_ACTION, refusals[TRIP_ACTION])
    _know(WS, UNKNOWN, _STRANGE_FRAMES)


_know_all()
