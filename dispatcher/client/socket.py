"""One WebSocket: an answer finds its request by its id, and silence on either side is noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import WSMsgType

from dispatcher.client.http import HttpCalls
from dispatcher.client.replies import Intent, Reply

Frame = dict[str, Any]

#: The id of heartbeats: the server answers one that has an id, so its silence is noticed as well.
_BEAT_ID: Final = "heartbeat"


class Socket:
    """One connection, from its opening to its end; then every request that waits for an answer fails.

    Its frames must be read all the time: that is how answers, and the end, are noticed.
    """

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._last_id = 0
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._heard_at = self._loop.time()
        self._beats: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, http: HttpCalls) -> Socket:
        """Connects as the user of these calls. Raises CONNECTION_ERRORS."""
        return cls(await http.open_websocket())

    @property
    def close_code(self) -> int | None:
        """The code that the connection was closed with, if it was."""
        return self._websocket.close_code

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames that answer none of our requests, until the connection ends.

        From the `welcome` on, heartbeats are sent as often as it says, unless other frames were.
        """
        try:
            async for message in self._websocket:
                self._heard_at = self._loop.time()
                if message.type is not WSMsgType.TEXT:
                    continue
                frame = orjson.loads(message.data)
                if frame["type"] == "welcome":
                    self._begin_beats(float(frame["heartbeat_s"]), float(frame["timeout_s"]))
                if frame["type"] in ("ack", "error") and frame.get("id") is not None:
                    self._answer(frame)
                else:
                    yield frame
        finally:
            if self._beats is not None:
                self._beats.cancel()
            unanswered, self._waiting = self._waiting, {}
            for future in unanswered.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the connection ended"))

    def _answer(self, frame: Frame) -> None:
        waiting = self._waiting.pop(frame["id"], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(frame)

    def _begin_beats(self, every_s: float, timeout_s: float) -> None:
        if self._beats is None:
            self._beats = asyncio.create_task(self._beat(every_s, timeout_s))

    async def _beat(self, every_s: float, timeout_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            now = self._loop.time()
            if now - self._heard_at > timeout_s:
                self.abort()  # a close frame would not arrive, and nobody would answer it
                return
            if now - min(self._sent_at, self._heard_at) >= every_s:
                try:
                    await self.send({"type": "heartbeat", "id": _BEAT_ID})
                except (aiohttp.ClientError, ConnectionError):  # who reads the frames is told
                    return

    async def send(self, frame: Frame) -> None:
        """Sends a frame that expects no answer. Raises CONNECTION_ERRORS."""
        self._sent_at = self._loop.time()
        await self._websocket.send_frame(orjson.dumps(frame), WSMsgType.TEXT)

    async def ask(self, intent: Intent) -> Reply:
        """Sends a change once, and waits for its answer. Raises CONNECTION_ERRORS."""
        return await self.request(intent.as_frame())

    async def request(self, frame: Frame) -> Reply:
        """Sends a frame and waits for its `ack` or `error`. Raises CONNECTION_ERRORS."""
        self._last_id += 1
        request_id = self._last_id
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[request_id] = future
        try:
            await self.send({**frame, "id": request_id})
            answer = await future
        finally:
            self._waiting.pop(request_id, None)
        after = answer.get("retry_after")
        return Reply(
            answer["status"],
            answer,
            bool(answer.get("replayed")),
            retry_after_s=None if after is None else float(after),
        )

    async def close(self) -> None:
        """Ends the connection with a close frame."""
        await self._websocket.close()

    def abort(self) -> None:
        """Ends the connection without a close frame, as a phone in a tunnel does."""
        transport_socket = self._websocket.get_extra_info("socket")
        if transport_socket is None:
            return
        try:
            duplicate = transport_socket.dup()
        except OSError:  # it is closed already
            return
        # asyncio and uvloop let only a duplicate be shut down; that ends the connection for both.
        with duplicate:
            try:
                duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side was faster
                return
