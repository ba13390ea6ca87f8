"""Rate limits: how many calls of which kind, and how a limit stood after a call."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class LimitClass(StrEnum):
    """The kind of call that a limit counts."""

    TRIP_ACCEPT = "trip_accept"
    TRIP_CANCEL = "trip_cancel"
    LOCATION_UPDATE = "location_update"
    GENERAL = "general"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"
    IP = "ip"


class Rate(NamedTuple):
    """At most `limit` admissions in any window of `window_s` seconds; a limit of 0 means off."""

    limit: int
    window_s: int

    def __str__(self) -> str:
        return f"{self.limit}/{self.window_s}" if self.limit else "off"


class Limit(NamedTuple):
    """A limit that applies to a call: at most `rate` calls of `subject` in class `name`.

    `zone` names the zone that keeps the log; empty: the one that decides on the call.
    """

    name: str
    subject: str
    rate: Rate
    zone: str = ""


#: Those that apply to one call.
Limits = tuple[Limit, ...]


class LimitState(NamedTuple):
    """How a limit stood after a call; times in ms since the epoch, by Redis' clock."""

    name: str
    rate: Rate
    remaining: int
    reset_ms: int
    now_ms: int

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which a call is admitted again, at least one."""
        return max(1, -((self.now_ms - self.reset_ms) // 1000))
