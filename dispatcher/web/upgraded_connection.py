"""A connection that became a WebSocket: what aiohttp may still hold of it, and what it may not.

Idle sockets are most of what a server has. aiohttp keeps the request of each as long as it is open, and
leaves one that was cut to the garbage collector, which may come late. Here an open socket lets go of its
request, and a closed one of whatever points back at it, so that counting references frees both. What is
leant on inside aiohttp, and is held by `tests/unit/test_upgraded_connection.py`:

- `RequestHandler.data_received` reads `_parser` and `_messages` until `set_parser`, and not after it;
- `RequestHandler.data_received` hands what comes after an upgrade to the parser's `feed_data`;
- a WebSocketReader ends the stream with 1002 at a frame whose reserved bits are set;
- a request's `_message`, `_headers`, `_rel_url`, `_match_info`, `_cache` and `_state` are of no use to
  an open WebSocket, and neither are the headers of its response;
- `WebSocketResponse._exception` is what closing it failed with, whose traceback leads back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import WebSocketReader
from multidict import CIMultiDict, CIMultiDictProxy

#: The headers of every request that has become a WebSocket.
_NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())
#: Those of every response to an upgrade, once it was sent; cleared ones keep their room.
_NO_RESPONSE_HEADERS: Final = CIMultiDict[str]()
_NO_MESSAGES: Final = cast("deque[Any]", ())
#: The first byte of a frame says what it is, the second whether it is masked, and its length.
_MASKED: Final = 0x80
_SHORT, _MEDIUM = 125, 126
#: Reserved bits, which no extension has claimed.
_BROKEN_FRAME: Final = b"\x70\x00"


class MaskedFrames:
    """Stands before aiohttp's reader, which also takes frames that are not masked.

    A client has to mask every frame; the connection of one that does not ends with 1002 (RFC 6455, 5.1).
    """

    __slots__ = ("_head", "_reader", "_to_come", "is_broken")

    def __init__(self, reader: WebSocketReader) -> None:
        self._reader = reader
        #: How many bytes of the last frame are still to come.
        self._to_come = 0
        #: The beginning of a frame whose length is not known yet.
        self._head = b""
        #: The stream is not worth reading any more.
        self.is_broken = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Takes what has arrived. True where the connection is not worth reading any more."""
        self.feed_some(data, len(data))
        return self.is_broken, b""

    def feed_some(self, data: bytes, most: int) -> tuple[int, bytes]:
        """Takes so many frames of what has arrived at most: how many began in it, and what was left."""
        if self._head:
            data, self._head = self._head + data, b""
        at, size, frames, rest = self._to_come, len(data), 0, b""
        while at + 1 < size:
            if frames == most:
                data, rest = data[:at], data[at:]
                size = at
                break
            second = data[at + 1]
            if second < _MASKED:
                self._reader.feed_data(data[:at] + _BROKEN_FRAME)
                self.is_broken = True
                return frames, b""
            frames += 1
            length, start = second - _MASKED, at + 6
            if length > _SHORT:
                start += 2 if length == _MEDIUM else 8
                if start - 4 > size:
                    frames -= 1  # it is counted when its length is known
                    break
                length = int.from_bytes(data[at + 2 : start - 4], "big")
            at = start + length
        if at < size:
            self._head, data = data[at:], data[:at]
            at = size = len(data)
        self._to_come = at - size
        self.is_broken, _ = self._reader.feed_data(data)
        return frames, rest

    def feed_eof(self) -> None:
        """The client has gone."""
        self._reader.feed_eof()


class UpgradableConnection(web.RequestHandler):
    """One connection, which an upgrade makes as light as it can be."""

    __slots__ = ()

    def set_parser(
        self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None
    ) -> None:
        """From now on, what arrives is frames."""
        super().set_parser(cast(WebSocketReader, MaskedFrames(parser)), data_received_cb)
        self._parser = None
        self._messages = _NO_MESSAGES


def release_request(request: web.Request, websocket: web.WebSocketResponse) -> None:
    """The WebSocket is open: of its request, only the transport is of use from now on."""
    parts = cast(Any, request)
    parts._headers = _NO_HEADERS
    parts._message = parts._rel_url = parts._match_info = parts._cache = parts._state = None
    cast(Any, websocket)._headers = _NO_RESPONSE_HEADERS


def release_socket(websocket: web.WebSocketResponse) -> None:
    """The WebSocket is closed, and nobody will ask it why."""
    websocket._exception = None
