"""One socket of one user: its bounded queue of frames, and the clocks that it is closed by."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final

import structlog
from aiohttp import WSMsgType, web

from dispatcher.core.errors import StoreUnavailable
from dispatcher.observe.series import SOCKET_RESYNCS, SOCKETS_CLOSED
from dispatcher.service.connections import Connection
from dispatcher.web.protocol import CloseCode

log = structlog.get_logger("dispatcher.sockets")

#: A client this far behind is closed and comes back to a snapshot.
_MAX_QUEUED_FRAMES: Final = 256
#: A frame that the network has not taken by then will not be taken.
_SEND_TIMEOUT_S: Final = 15.0
#: How long a client has to answer a close frame.
_CLOSE_TIMEOUT_S: Final = 2.0
_MAX_IN_BACKGROUND: Final = 16
#: Rests between attempts to read a snapshot while an engine is away: doubled each time.
_MIN_REST_S: Final = 0.5
_MAX_REST_S: Final = 8.0


#: What frames of a watched zone are about: one of them waits at most.
_VIEW: Final = "view"

SOCKETS_CLOSED.know((code.name.lower(),) for code in CloseCode)

Resync = Callable[["WebSocketConnection"], Awaitable[None]]


class WebSocketConnection:
    """Sends without letting anybody wait: the writer runs only while there is something to send."""

    __slots__ = (
        "_background",
        "_on_resync",
        "_queue",
        "_replaceable",
        "_request",
        "_resync_task",
        "_resync_wanted",
        "_send_task",
        "_websocket",
        "actor",
        "closing",
        "expires_at_s",
        "presence",
        "request_id",
    )

    def __init__(
        self,
        websocket: web.WebSocketResponse,
        request: web.BaseRequest,
        presence: Connection,
        *,
        expires_at_s: float,
        request_id: str,
        on_resync: Resync,
    ) -> None:
        self._websocket = websocket
        self._request = request
        self._on_resync = on_resync
        #: Frames in their order; in the place of one that may be replaced stands what it is about.
        #: (An empty list is a tenth of an empty deque, and most sockets are idle.)
        self._queue: list[bytes | str] = []
        self._replaceable: dict[str, bytes] = {}
        self._send_task: asyncio.Task[None] | None = None
        self._resync_task: asyncio.Task[None] | None = None
        self._resync_wanted = False
        self._background: dict[asyncio.Task[None], None] = {}
        self.actor = presence.actor
        self.presence = presence
        #: When the token ends, in s since the epoch.
        self.expires_at_s = expires_at_s
        #: Of the call that opened the socket.
        self.request_id = request_id
        self.closing = False

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        """Queues a frame. A client that is too far behind is closed."""
        if self.closing:
            return
        if replaces is None:
            self._queue.append(frame)
        else:
            if replaces not in self._replaceable:
                self._queue.append(replaces)
            self._replaceable[replaces] = frame
        if len(self._queue) > _MAX_QUEUED_FRAMES:
            self.abort(CloseCode.TOO_SLOW, "client does not read")
        elif self._send_task is None:
            self._send_task = asyncio.get_running_loop().create_task(self._send())

    def show(self, frame: bytes) -> bool:
        """Queues a frame of what the user watches; False where the one before is still waiting."""
        if _VIEW in self._replaceable or self.closing:
            return False
        self.send(frame, replaces=_VIEW)
        return True

    async def _send(self) -> None:
        try:
            while self._queue:
                item = self._queue.pop(0)
                frame = self._replaceable.pop(item) if isinstance(item, str) else item
                async with asyncio.timeout(_SEND_TIMEOUT_S):
                    await self._websocket.send_frame(frame, WSMsgType.TEXT)
        except TimeoutError:
            self.abort(CloseCode.TOO_SLOW, "client does not read")
        except ConnectionError:
            self.closing = True
        finally:
            self._send_task = None

    async def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets work go on while the next frame is read; not too much of it at once."""
        if len(self._background) >= _MAX_IN_BACKGROUND:
            await work
            return
        task = asyncio.get_running_loop().create_task(work)
        self._background[task] = None
        task.add_done_callback(self._background.pop)

    def resync(self) -> None:
        """Tells the client its state anew, as soon as it can be read."""
        # A snapshot that is being read may be older than what was lost just now.
        self._resync_wanted = True
        SOCKET_RESYNCS.add()
        if self._resync_task is None and not self.closing:
            self._resync_task = asyncio.get_running_loop().create_task(self._resync())

    async def _resync(self) -> None:
        rest_s = _MIN_REST_S
        try:
            while self._resync_wanted and not self.closing:
                self._resync_wanted = False
                try:
                    await self._on_resync(self)
                except StoreUnavailable as error:
                    self._resync_wanted = True
                    log.info("snapshot is put off", user=self.actor.user_id, reason=str(error))
                    # Sockets that lost their link together do not ask again together.
                    await asyncio.sleep(rest_s * random.uniform(0.5, 1))  # noqa: S311
                    rest_s = min(2 * rest_s, _MAX_REST_S)
        except Exception:
            log.exception("snapshot failed", user=self.actor.user_id)
            await self.close(CloseCode.INTERNAL_ERROR, "snapshot failed")
        finally:
            self._resync_task = None

    def end(self) -> None:
        """The socket is closed, by whomever: nothing is sent any more, and nothing read for it."""
        self.closing = True
        if self._resync_task is not None:
            self._resync_task.cancel()

    async def close(self, code: CloseCode, reason: str) -> None:
        """Closes politely; frames that wait are dropped, a snapshot will tell."""
        if self.closing:
            return
        self.closing = True
        self._queue.clear()
        self.note_closed(code, reason)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._websocket.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError):
            self._abort_transport()

    def abort(self, code: CloseCode, reason: str) -> None:
        """Cuts the connection of a client that does not read: a close frame would not arrive."""
        if not self.closing:
            self.closing = True
            self._queue.clear()
            self._replaceable.clear()
            self.note_closed(code, reason)
            self._abort_transport()

    def note_closed(self, code: CloseCode, reason: str) -> None:
        """Counts and logs that the server has closed the socket."""
        SOCKETS_CLOSED.add(code.name.lower())
        if code is not CloseCode.RESTART:
            # Not in the context of this call, which may be that of a frame or of another user.
            Context().run(
                log.warning,
                "socket closed", code=int(code), reason=reason, user=self.actor.user_id,
                connection=self.presence.id, request_id=self.request_id,
            )  # fmt: skip

    def _abort_transport(self) -> None:
        transport = self._request.transport
        if transport is not None:
            transport.abort()
