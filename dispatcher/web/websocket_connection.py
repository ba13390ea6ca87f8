"""One socket of one user: bounded queue, coalesced positions, and the clocks it is closed by."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, Final

import structlog
from aiohttp import WSMsgType, web

from dispatcher.core.actors import Actor
from dispatcher.service.presence import Connection

log = structlog.get_logger("dispatcher.sockets")

#: A client this far behind is closed and comes back to a snapshot.
_MOST_WAITING: Final = 256
#: A frame that the network has not taken after this long will not be.
_SEND_S: Final = 15.0
#: Sustained, this is more than any app has to say: positions come in batches.
_MOST_FRAMES: Final = 200
_WINDOW_S: Final = 1.0
_MOST_UNDER_WAY: Final = 16


class Close(IntEnum):
    """Why the server closes a socket: codes of RFC 6455, and our own from 4400 on."""

    UNSUPPORTED = 1003
    TOO_BIG = 1009
    RESTART = 1012
    BAD_FIRST_FRAME = 4400
    UNAUTHORIZED = 4401
    NO_HEARTBEAT = 4408
    TOO_SLOW = 4413
    TOO_MANY_FRAMES = 4429


class Socket:
    """Sends without letting anybody wait: the writer runs only while there is something to send."""

    __slots__ = (
        "_count",
        "_frames",
        "_latest",
        "_sender",
        "_since",
        "_under_way",
        "_websocket",
        "actor",
        "closing",
        "connection",
        "expires_at",
        "on_resync",
        "resyncing",
    )  # fmt: skip

    def __init__(
        self, websocket: web.WebSocketResponse, actor: Actor, connection: Connection, exp: float
    ) -> None:
        self._websocket = websocket
        self._frames: deque[bytes | str] = deque()
        self._latest: dict[str, bytes] = {}
        self._sender: asyncio.Task[None] | None = None
        self._since = 0.0
        self._count = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self.actor = actor
        self.connection = connection
        #: When the token ends, in s since the epoch.
        self.expires_at = exp
        self.closing = False
        self.resyncing: asyncio.Task[None] | None = None
        self.on_resync: Any = None

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        """Queues a frame. A client that is too far behind is closed."""
        if self.closing:
            return
        if replaces is None:
            self._frames.append(frame)
        else:
            if replaces not in self._latest:
                self._frames.append(replaces)
            self._latest[replaces] = frame
        if len(self._frames) > _MOST_WAITING:
            self.abort(Close.TOO_SLOW, "client does not read")
        elif self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._frames:
                item = self._frames.popleft()
                frame = self._latest.pop(item) if isinstance(item, str) else item
                async with asyncio.timeout(_SEND_S):
                    await self._websocket.send_frame(frame, WSMsgType.TEXT)
        except TimeoutError:
            self.abort(Close.TOO_SLOW, "client does not read")
        except ConnectionError:
            self.closing = True
        finally:
            self._sender = None

    async def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets work go on while the next frame is read; not too much of it at once."""
        if len(self._under_way) >= _MOST_UNDER_WAY:
            await work
            return
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def resync(self) -> None:
        """Tells the client its state anew, once at a time."""
        if self.on_resync is not None and self.resyncing is None and not self.closing:
            self.resyncing = asyncio.get_running_loop().create_task(self._resync())

    async def _resync(self) -> None:
        try:
            await self.on_resync(self)
        except Exception:
            log.exception("snapshot failed", user=self.actor.user_id)
        finally:
            self.resyncing = None

    def counts_frame(self) -> bool:
        """Counts a received frame; False where they come too fast."""
        now = time.monotonic()
        if now - self._since > _WINDOW_S:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= _MOST_FRAMES

    async def close(self, code: Close, reason: str) -> None:
        """Closes politely; frames that wait are dropped, a snapshot will tell."""
        if self.closing:
            return
        self.closing = True
        self._frames.clear()
        self._log(code, reason)
        try:
            async with asyncio.timeout(2):
                await self._websocket.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError):
            self._cut()

    def abort(self, code: Close, reason: str) -> None:
        """Cuts the connection of a client that does not read: a close frame would not arrive."""
        if not self.closing:
            self.closing = True
            self._frames.clear()
            self._latest.clear()
            self._log(code, reason)
            self._cut()

    def _log(self, code: Close, reason: str) -> None:
        if code is not Close.RESTART:
            log.warning(
                "socket closed", code=int(code), reason=reason, user=self.actor.user_id,
                connection=self.connection.id,
            )  # fmt: skip

    def _cut(self) -> None:
        request = self._websocket._req
        if request is not None and request.transport is not None:
            request.transport.abort()
