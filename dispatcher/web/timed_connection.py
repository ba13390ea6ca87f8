"""How long a connection may take: for the head of a call, its body, its answer, and until the next call.

The door looks at all connections with one timer, and a call itself costs nothing here; only one that is
closed, and whose client does not read what was sent, has a timer of its own. What is leant on
inside aiohttp, and is held by `tests/unit/test_guarded_connection.py`:

- `_waiter` is there while the next head is waited for; `_request_count` counts what was parsed;
- `_request_in_progress` is true while a request is answered, `_current_request` is None from when its
  handler is done, and `_paused` is true while its client does not read;
- `_manager` is None from when the connection has ended, which it has not before all was sent;
- what is left of a refused body is read for `_lingering_time`.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any, Final

from aiohttp import web

from dispatcher.web.door import Door
from dispatcher.web.upgraded_connection import UpgradableConnection

_LATE_HEAD: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class LateBody(web.RequestPayloadError):
    """The body of a request did not arrive in time."""


class Phase(StrEnum):
    """What a connection is waited for; each has a deadline."""

    HEAD = "head"
    BODY = "body"
    IDLE = "idle"
    ANSWER = "answer"


class TimedConnection(UpgradableConnection):
    """One connection, which is ended where it takes too long."""

    __slots__ = ("_door", "_head_begun", "_phase", "_phase_since_s", "address")

    def __init__(self, manager: web.Server, *, door: Door, **options: Any) -> None:
        super().__init__(manager, **options)
        self._door = door
        self.address: str | None = None
        #: The number of calls before the one whose head has arrived in part.
        self._head_begun = 0
        self._phase: tuple[int, Phase | None] = (0, Phase.HEAD)
        self._phase_since_s = self._loop.time()

    def _take_calls(self, data: bytes) -> None:
        """Takes what has arrived before an upgrade. One step for all floors: each call passes it."""
        before = self._request_count
        web.RequestHandler.data_received(self, data)
        if self._request_count == before and self._waiter is not None:
            self._head_begun = before

    def is_answering(self) -> bool:
        """Whether a call is being answered."""
        return self._request_in_progress

    def look_at_clock(self, now_s: float) -> None:
        """Ends what has taken too long. It is only seen from look to look."""
        phase = (self._request_count, self._phase_now())
        if phase != self._phase:
            self._phase, self._phase_since_s = phase, now_s
            return
        _, waited_for = phase
        limits = self._door.limits
        if waited_for is None:
            return
        if waited_for is Phase.HEAD:
            allowed_s = limits.head_timeout_s
        elif waited_for is Phase.IDLE:
            allowed_s = limits.idle_timeout_s
        else:
            allowed_s = limits.body_timeout_s
        if now_s - self._phase_since_s >= allowed_s:
            self._phase_since_s = now_s
            self._end_wait(waited_for)

    def force_close(self) -> None:
        """Ends the connection; what its client does not read in time is dropped."""
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(self._door.limits.body_timeout_s, self._cut_off, transport)

    def _cut_off(self, transport: asyncio.Transport) -> None:
        if self._manager is not None:  # it has not come to its end
            self._door.count_ended(Phase.ANSWER, self.address)
            transport.abort()

    def _phase_now(self) -> Phase | None:
        if self._request_in_progress:
            request = self._current_request
            if request is not None and not request.content.is_eof():
                return Phase.BODY
            return Phase.ANSWER if self._paused else None
        if self._waiter is None:
            return None
        return Phase.HEAD if self._head_begun == self._request_count else Phase.IDLE

    def _end_wait(self, waited_for: Phase) -> None:
        self._door.count_ended(waited_for, self.address)
        if waited_for is Phase.BODY and self._current_request is not None:
            self._lingering_time = 0.0
            self._current_request.content.set_exception(LateBody())
        elif self.transport is not None and waited_for is Phase.ANSWER:
            self.transport.abort()
        else:
            if self.transport is not None and waited_for is Phase.HEAD:
                self.transport.write(_LATE_HEAD)
            self.force_close()
