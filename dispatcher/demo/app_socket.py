"""An app's WebSocket: an answer finds its request by id, all other frames go to the app."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
from aiohttp import WSMsgType

from dispatcher.demo.api_client import ApiClient, Reply

Frame = dict[str, Any]


class AppSocket:
    """One connection. When it ends, every request that waits for an answer fails."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._last_id = 0

    @classmethod
    async def open(cls, api: ApiClient, token: str) -> AppSocket:
        """Connects as the token's user. Raises CONNECTION_ERRORS."""
        return cls(await api.open_websocket(token))

    @property
    def close_code(self) -> int | None:
        """The code that the server closed the connection with, if it did."""
        return self._websocket.close_code

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames that answer none of our requests, until the connection ends."""
        try:
            async for message in self._websocket:
                if message.type is not WSMsgType.TEXT:
                    continue
                frame = orjson.loads(message.data)
                waiting = self._waiting.pop(frame.get("id"), None)
                if waiting is None:
                    yield frame
                elif not waiting.done():
                    waiting.set_result(frame)
        finally:
            unanswered, self._waiting = self._waiting, {}
            for future in unanswered.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the connection ended"))

    async def send(self, frame: Frame) -> None:
        """Sends a frame that expects no answer. Raises CONNECTION_ERRORS."""
        await self._websocket.send_frame(orjson.dumps(frame), WSMsgType.TEXT)

    async def request(self, frame: Frame) -> Reply:
        """Sends a frame and waits for its `ack` or `error`. Raises CONNECTION_ERRORS."""
        self._last_id += 1
        request_id = self._last_id
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            await self.send({**frame, "id": request_id})
            answer = await future
        finally:
            self._waiting.pop(request_id, None)
        return Reply(answer["status"], answer, bool(answer.get("replayed")))

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
