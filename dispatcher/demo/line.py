"""An app's WebSocket: answers find their question by id, other frames go to the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
from aiohttp import WSMsgType

from dispatcher.demo.calls import Caller, Reply

Frame = dict[str, Any]


class Line:
    """One connection. Everything that waits for an answer fails with it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._count = 0

    @classmethod
    async def open(cls, caller: Caller, token: str) -> Line:
        """Connects as the token's user. Raises calls.LOST."""
        return cls(await caller.open_socket(token))

    @property
    def close_code(self) -> int | None:
        """Why the server closed it, if it did."""
        return self._socket.close_code

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames that answer no question of ours, until the connection ends."""
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.TEXT:
                    continue
                frame = orjson.loads(message.data)
                waiting = self._waiting.pop(frame.get("id"), None)
                if waiting is None:
                    yield frame
                elif not waiting.done():
                    waiting.set_result(frame)
        finally:
            waiting_now, self._waiting = self._waiting, {}
            for future in waiting_now.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the socket is gone"))

    async def tell(self, frame: Frame) -> None:
        """Sends a frame and waits for nothing. Raises calls.LOST."""
        await self._socket.send_frame(orjson.dumps(frame), WSMsgType.TEXT)

    async def ask(self, frame: Frame) -> Reply:
        """Sends a frame and waits for its `ack` or `error`. Raises calls.LOST."""
        self._count += 1
        number = self._count
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self.tell({**frame, "id": number})
            answer = await future
        finally:
            self._waiting.pop(number, None)
        return Reply(answer["status"], answer, bool(answer.get("replayed")))

    async def close(self) -> None:
        """Says goodbye."""
        await self._socket.close()

    def cut(self) -> None:
        """Ends it without a word, as a tunnel does."""
        connection = self._socket._conn
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
