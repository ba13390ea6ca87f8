"""A user's events over one connection after another, each of which begins with a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from pydantic import ValidationError

from dispatcher.client.events import Event, Welcome, read_event
from dispatcher.client.http import HttpCalls
from dispatcher.client.problems import ApiError
from dispatcher.client.retries import CONNECTION_ERRORS
from dispatcher.client.socket import Frame, Socket
from dispatcher.core.times import wait_s

log = logging.getLogger("dispatcher.client")

#: An app this far behind is better off with a snapshot.
_MAX_QUEUED: Final = 1_000
#: How long a connection may take to be opened and welcomed, in s.
_OPEN_S: Final = 15.0
#: The longest rest after the first connection that is lost, in s, which doubles; and the longest of all.
_FIRST_REST_S: Final = 0.5
_MAX_REST_S: Final = 30.0
#: A server, or what stands before it, that asks for more time than this is asked all the same.
_LONGEST_WAIT_S: Final = 600.0
#: Close code of a token that is not valid any more.
_UNAUTHORIZED: Final = 4401


class Channel:
    """Connects, and connects again, until it is closed or the server refuses its user.

    `socket` is the connection, while there is one that was welcomed.
    """

    def __init__(self, http: HttpCalls) -> None:
        self.socket: Socket | None = None
        self._http = http
        # One more than may wait: what ends the events always has its place.
        self._queue: asyncio.Queue[Event | ApiError | None] = asyncio.Queue(_MAX_QUEUED + 1)
        self._welcomed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retry_after_s = 0.0

    def start(self) -> None:
        """Begins to connect; a second time does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def welcomed(self) -> None:
        """Returns once there is a connection."""
        self.start()
        await self._welcomed.wait()

    async def events(self) -> AsyncIterator[Event]:
        """What the server tells, in its order; for one reader. Raises ApiError: the user is refused."""
        self.start()
        while (event := await self._queue.get()) is not None:
            if isinstance(event, ApiError):
                raise event
            yield event

    async def close(self) -> None:
        """Ends the connection, and the events."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._end(None)

    async def _run(self) -> None:
        losses = 0
        while True:
            began = asyncio.get_running_loop().time()
            self._retry_after_s = 0.0
            try:
                await self._connection()
            except ApiError as refused:
                self._end(refused)
                return
            except CONNECTION_ERRORS as error:
                log.debug("connection failed: %r", error)
            # Who was connected for long starts anew; one that is welcomed and dropped at once does not.
            lasted_s = asyncio.get_running_loop().time() - began
            losses = 0 if lasted_s > _MAX_REST_S else losses + 1
            longest_s = min(_MAX_REST_S, _FIRST_REST_S * 2 ** min(losses, 10))
            await asyncio.sleep(self._retry_after_s + random.uniform(0, longest_s))  # noqa: S311

    async def _connection(self) -> None:
        socket = None
        try:
            async with asyncio.timeout(_OPEN_S) as opening:
                socket = await self._open()
                async for frame in socket.frames():
                    event = _read(frame)
                    if isinstance(event, Welcome):
                        opening.reschedule(None)
                        self.socket = socket
                        self._welcomed.set()
                    if event is not None and not self._put(event):
                        log.warning("events are not read: starting again from a snapshot")
                        socket.abort()
                        return
            if socket.close_code == _UNAUTHORIZED and not self._http.renews_token:
                raise ApiError.of(401, {"response_code": "token_expired"}, None)
        finally:
            self.socket = None
            self._welcomed.clear()
            if socket is not None:
                with contextlib.suppress(*CONNECTION_ERRORS):
                    await socket.close()

    async def _open(self) -> Socket:
        try:
            return await Socket.open(self._http)
        except aiohttp.WSServerHandshakeError as refused:
            if refused.status in (401, 403):
                raise _refusal(refused) from None
            told_s = wait_s(_header(refused, "Retry-After"))
            self._retry_after_s = min(told_s or 0.0, _LONGEST_WAIT_S)
            raise

    def _put(self, event: Event) -> bool:
        """False where too many are waiting; then they are forgotten."""
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put_nowait(event)
            return True
        while not self._queue.empty():
            self._queue.get_nowait()
        return False

    def _end(self, why: ApiError | None) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # it has ended already
            self._queue.put_nowait(why)


def _read(frame: Frame) -> Event | None:
    try:
        return read_event(frame)
    except (ValidationError, KeyError):
        log.warning("a frame of type %r is not understood", frame.get("type"), exc_info=True)
        return None


def _refusal(refused: aiohttp.WSServerHandshakeError) -> ApiError:
    """Why the user may not connect: aiohttp keeps the head of that answer."""
    challenge = _header(refused, "WWW-Authenticate")
    code = "invalid_token" if refused.status == 401 else "origin_not_allowed"
    if "expired" in challenge:
        code = "token_expired"
    elif refused.status == 401 and "error" not in challenge:
        code = "missing_token"
    return ApiError.of(refused.status, {"response_code": code}, None)


def _header(refused: aiohttp.WSServerHandshakeError, name: str) -> str:
    return refused.headers.get(name, "") if refused.headers is not None else ""
