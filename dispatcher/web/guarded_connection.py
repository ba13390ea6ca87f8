"""One connection's share of the server: bounded turns of the event loop, and a bounded rate.

What arrives is taken in small parts, one in each turn of the loop, and no more of it than the allowance
of the connection admits; meanwhile nothing is read from it. A client that goes on after a warning is
disconnected. An honest call costs a subtraction and a few comparisons. What is leant on inside aiohttp,
and is held by `tests/unit/test_guarded_connection.py`:

- `_messages` holds what was parsed, 32 at most;
- aiohttp's own holds are `_reading_paused` and `_buffer_paused`; `resume_reading` ends them, and then
  `_resume_transport_reading` reads on.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web
from aiohttp.http import WebSocketReader

from dispatcher.core.errors import Refusal
from dispatcher.observe.series import ACTIONS
from dispatcher.service.answers import refusal_answer
from dispatcher.web.action_counts import HTTP, UNKNOWN, WS
from dispatcher.web.allowance import Allowance
from dispatcher.web.door import Door
from dispatcher.web.problems import RETRY_AFTER_S
from dispatcher.web.protocol import CloseCode, encode_error
from dispatcher.web.responses import HttpResponse, answer_response
from dispatcher.web.timed_connection import TimedConnection

#: Bytes that are parsed in one turn; such a part counts as one message. The largest body has 16 of them.
_PART_BYTES: Final = 4096
_FRAMES_A_TURN: Final = 64
#: Calls that were sent without waiting for answers are answered so many in one turn.
_CALLS_A_TURN: Final = 2
#: They count so much more: a busy server would otherwise be theirs, with each below its rate.
_PILED_UP: Final = 4
#: How long a client that was warned, or is to read why it is disconnected, is not listened to.
_HELD_S: Final = 1.0
_HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})


def _frame(opcode: int, payload: bytes) -> bytes:
    """A frame of a server (RFC 6455, 5.2), of less than 64 KiB."""
    size = len(payload)
    length = bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + payload


_WARNING_FRAME: Final = _frame(0x1, encode_error(None, refusal_answer(Refusal("too_many_frames"))))
_CLOSE_FRAME: Final = _frame(0x8, int(CloseCode.TOO_MANY_FRAMES).to_bytes(2, "big") + b"too many frames")


class GuardedConnection(TimedConnection):
    """One connection, which the door has admitted, and which cannot take the server from the others."""

    __slots__ = (
        "_calls_in_turn",
        "_held",
        "_is_holding",
        "_next_turn",
        "_via_proxy",
        "allowance",
        "is_for_health",
        "is_watched",
    )

    def __init__(self, manager: web.Server, *, door: Door, **options: Any) -> None:
        super().__init__(manager, door=door, **options)
        self.allowance = Allowance(door.limits.rate, self._loop.time())
        self.is_for_health = False
        #: Each of its calls is looked at: it is for health, or comes through a proxy.
        self.is_watched = False
        self._via_proxy = False
        #: What has arrived and waits for its turn.
        self._held = b""
        self._is_holding = False
        self._next_turn: asyncio.Handle | None = None
        #: Calls that were answered one after the other, without a turn for others.
        self._calls_in_turn = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.address = self._door.client_ip.of(peer[0], "")
            self._via_proxy = self._door.client_ip.trusts(peer[0])
        if not self._door.admit(self, via_proxy=self._via_proxy):
            self._manager = None  # it was never there
            transport.abort()  # type: ignore[attr-defined]
            return
        self.is_watched = self.is_for_health or self._via_proxy
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._manager is not None:
            self._door.leave(
                self, via_proxy=self._via_proxy, was_upgraded=self._payload_parser is not None
            )
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._held = b""
        super().connection_lost(exc)

    # --- what arrives

    def data_received(self, data: bytes) -> None:
        if data and (self._is_holding or len(data) > _PART_BYTES):
            self._hold(data)
        elif self._payload_parser is not None:
            self._take_frames(data)
        else:
            self._take_calls(data)

    def _take_frames(self, data: bytes) -> None:
        frames, rest = self._payload_parser.feed_some(data, _FRAMES_A_TURN)
        if self._payload_parser.is_broken:
            self.close()
            return
        self.allowance.left -= frames + len(data) // _PART_BYTES
        if rest or self.allowance.left < 1:
            self._hold(rest)

    def set_parser(self, parser: WebSocketReader, data_received_cb: Any = None) -> None:
        """From now on, what arrives is frames."""
        tail, self._message_tail = self._message_tail, b""
        super().set_parser(parser, data_received_cb)
        self._door.upgraded(self, via_proxy=self._via_proxy)
        if self._is_holding:  # the tail came before what is held
            self._held = tail + self._held
        elif tail:
            self._hold(tail)

    def _hold(self, data: bytes) -> None:
        """Keeps what has arrived, and does not read on, until it has been taken."""
        self._held += data
        if not self._is_holding:
            self._is_holding = True
            self._pause_transport_reading()
            self._next_turn = self._loop.call_soon(self._take_next_part)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks for it with each body that is read, and parses and resumes though nothing is held.
        if self._reading_paused or self._buffer_paused or self._is_holding:
            super().resume_reading(resume_parser)

    def _resume_transport_reading(self) -> None:
        if not self._is_holding:
            super()._resume_transport_reading()
        elif self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._take_next_part)

    def _take_next_part(self) -> None:
        """Takes a part of what is held, and comes back for the next one in another turn."""
        self._next_turn = None
        if self.transport is None or self._reading_paused or self._buffer_paused:
            return
        if self.allowance.left < 1:
            # Of a proxy, many clients' calls come on one connection.
            is_flood = bool(self._held) and not self._via_proxy
            wait_s = self._wait_s(is_flood=is_flood or self._payload_parser is not None)
            if wait_s:
                if self._next_turn is None:  # it has not come to its end
                    self._next_turn = self._loop.call_later(wait_s, self._take_next_part)
                return
        held, self._held = self._held, b""
        self._is_holding = False
        if held:
            self.data_received(held[:_PART_BYTES])
            held = held[_PART_BYTES:]
        if held:
            self._held += held
            self.allowance.left -= 1
        if self._held or self._is_holding:
            self._is_holding = True
            if self._next_turn is None:
                self._next_turn = self._loop.call_soon(self._take_next_part)
        elif not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def _wait_s(self, *, is_flood: bool) -> float:
        """How long the connection has to wait; it may be its end."""
        now_s = self._loop.time()
        wait_s = self.allowance.wait_s(self._door.limits.rate, now_s)
        if not wait_s or not is_flood:
            return wait_s
        is_websocket = self._payload_parser is not None
        if self.allowance.warn(now_s):
            if is_websocket and self.transport is not None:
                self.transport.write(_WARNING_FRAME)
                ACTIONS.add(WS, UNKNOWN, "too_many_frames")
        else:
            self._disconnect()
        return max(wait_s, _HELD_S)

    def _disconnect(self) -> None:
        self._door.strike(self.address)
        if self._payload_parser is not None and self.transport is not None:
            self.transport.write(_CLOSE_FRAME)
        # It is not listened to any more, and may read the reason.
        self._is_holding = True
        self._held = b""
        self._pause_transport_reading()
        self._next_turn = self._loop.call_later(_HELD_S, self.force_close)

    # --- calls

    async def check_call(self, request: web.Request) -> HttpResponse | None:
        """Looks closer at a call where the short look of `connection` did not do; a refusal, or None.

        Waits where the connection has had its turn, or its share.
        """
        if self.is_for_health and request.path not in _HEALTH_PATHS:
            return _refusal("service_unavailable", closes=True)
        if self._via_proxy:
            return self._check_proxied_call(request)
        return await self._take_turn()

    async def _take_turn(self) -> HttpResponse | None:
        if self._messages:
            self.allowance.left -= _PILED_UP
        if self.allowance.left >= 1:
            self._calls_in_turn += 1
            if self._calls_in_turn >= _CALLS_A_TURN:
                self._calls_in_turn = 0
                await asyncio.sleep(0)
            return None
        now_s = self._loop.time()
        wait_s = self.allowance.wait_s(self._door.limits.rate, now_s)
        if not wait_s:
            return None
        if not self._messages:  # it waits for its answers, so slower answers are enough
            await asyncio.sleep(wait_s)
            return None
        if self.allowance.warn(now_s):
            await asyncio.sleep(max(wait_s, _HELD_S))
            return _refusal("too_many_calls")
        self._door.strike(self.address)
        return _refusal("too_many_calls", closes=True)

    def _check_proxied_call(self, request: web.Request) -> HttpResponse | None:
        # Never by waiting or closing: the connection is the proxy's, and brings calls of others.
        self.allowance.left += 1
        address = self._door.client_ip(request)
        if address is None or self._door.client_ip.trusts(address):
            return None
        self.address = address
        banned_s = self._door.banned_s(address)
        if banned_s:
            return _refusal("too_many_calls", retry_after_s=int(banned_s) + 1)
        if self._upgraded and not self._door.has_room(address):
            return _refusal("too_many_connections")
        now_s = self._loop.time()
        allowance = self._door.allowance_of(address, now_s)
        allowance.left -= 1
        if allowance.left >= 0 or not allowance.wait_s(self._door.limits.rate, now_s):
            return None
        if allowance.left < -self._door.limits.rate.limit and not allowance.warn(now_s):
            allowance.left = 0.0
            self._door.strike(address)
        return _refusal("too_many_calls")


def _refusal(code: str, *, retry_after_s: int = RETRY_AFTER_S, closes: bool = False) -> HttpResponse:
    response = answer_response(refusal_answer(Refusal(code, retry_after=retry_after_s)))
    response.keep_alive = not closes
    ACTIONS.add(HTTP, UNKNOWN, code)
    return response
