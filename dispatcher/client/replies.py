"""What an app wants once, and what it is answered."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dispatcher.client.problems import ApiError

#: Refusals that pass by themselves: the same intent is sent again. None of them is kept for its key.
PASSING_CODES: Final = frozenset(
    {
        "request_in_progress", "trip_busy", "service_unavailable", "outcome_unknown", "request_timeout",
        "rate_limit_exceeded", "too_many_calls", "too_many_connections", "too_many_frames",
    }
)  # fmt: skip
#: The same where something on the way refuses and no code says why, as a proxy that is asked too much.
_PASSING_STATUSES: Final = frozenset({408, 425, 429})


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Intent:
    """A change that an app wants once: one key, however often and whichever way it is sent.

    `frame` is the type of the frame that asks for the same over a socket; None: there is none.
    """

    path: str
    body: Mapping[str, Any]
    frame: str | None = None
    key: str = field(default_factory=new_key)

    def as_frame(self) -> dict[str, Any]:
        """What goes over a socket."""
        return {"type": self.frame, "idempotency_key": self.key, **self.body}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `raw` are its bytes where it came over HTTP."""

    status: int
    body: dict[str, Any]
    replayed: bool = False
    raw: bytes | None = None
    #: When to ask again, in s; None where the answer does not say.
    retry_after_s: float | None = None

    @property
    def code(self) -> str:
        """The `response_code`; empty where there is none."""
        return str(self.body.get("response_code", ""))

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.status < 400

    @property
    def is_passing(self) -> bool:
        """Whether it is a refusal that passes by itself."""
        return self.code in PASSING_CODES if self.code else self.status in _PASSING_STATUSES

    def result(self) -> dict[str, Any]:
        """The body of a success. Raises ApiError."""
        if not self.ok:
            raise ApiError.of(self.status, self.body, self.retry_after_s)
        return self.body
