"""The request and the trip that the lines of a call are about."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from structlog.typing import EventDict

#: The id of the call or frame that is being answered: the client's own, or one that was made.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
#: The trip that it is about, once that is known.
TRIP_ID: Final[ContextVar[str]] = ContextVar("trip_id", default="")


#: What adds further ids to a line: those of its span, where calls are traced.
MORE_IDS: Final[list[Callable[[EventDict], None]]] = []


def add_call_ids(_: Any, __: str, event: EventDict) -> EventDict:
    """Add both ids to a log line that does not name them itself."""
    if (request_id := REQUEST_ID.get()) and not event.get("request_id"):
        event["request_id"] = request_id
    if (trip_id := TRIP_ID.get()) and not event.get("trip_id"):
        event["trip_id"] = trip_id
    for add in MORE_IDS:
        add(event)
    return event
