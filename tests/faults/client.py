"""One user's app: an intent has one key, and is sent until it is answered; a socket is opened anew."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from random import Random
from typing import Any

import aiohttp
import orjson

from dispatcher.client import CONNECTION_ERRORS, HttpCalls, Intent, Socket
from tests.faults.history import Attempt, History
from tests.harness.servers import make_token

_ANSWER_S = 4.0  # twice the servers' deadline
_INTENT_S = 25.0  # longer than any fault
_RETRY_S = (0.05, 0.3)
#: Errors of a connection that a server under faults ends, or does not take.
_AWAY = (*CONNECTION_ERRORS, OSError)
#: Long ago, for servers whose clock steps back.
_ISSUED_AT = int(time.time()) - 300
#: What can be asked for by a frame as well.
_FRAMES = {"/api/driver/ride/trip-action": "trip_action", "/api/driver/availability": "availability"}


class Client:
    """Calls and a socket of one user; everything goes into the history."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        urls: list[str],
        history: History,
        user: str,
        role: str,
        seed: int,
    ) -> None:
        self.user = user
        self.random = Random(f"{seed}/{user}")
        self.snapshot: dict[str, Any] = {}
        self.offers: list[str] = []
        self.welcomed = asyncio.Event()
        self._servers = [HttpCalls(http, url, make_token(user, role, iat=_ISSUED_AT)) for url in urls]
        self._history = history
        self._keys = itertools.count()
        self._socket: Socket | None = None

    async def intend(
        self,
        endpoint: str,
        body: dict[str, Any],
        *,
        key: str | None = None,
        patience_s: float = _INTENT_S,
    ) -> Attempt:
        """Sends an intent until it is answered; now and then twice at once, as a nervous finger does.

        Returns the attempt that was answered, or the last one where nothing was in `patience_s`.
        """
        key = key or f"{self.user}-{next(self._keys)}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while True:
            ways = [
                self._send_once(endpoint, key, body) for _ in range(1 + (self.random.random() < 0.1))
            ]
            attempts = await asyncio.gather(*ways)
            for attempt in attempts:
                if attempt.is_final:
                    return attempt
            if loop.time() > deadline:
                return attempts[-1]
            await asyncio.sleep(self.random.uniform(*_RETRY_S))

    async def _send_once(self, endpoint: str, key: str, body: dict[str, Any]) -> Attempt:
        attempt = self._history.begin(self.user, endpoint, key, body)
        if endpoint in _FRAMES and self._socket is not None and self.random.random() < 0.4:
            await self._by_frame(attempt)
        else:
            await self._by_http(attempt)
        return attempt

    async def _by_http(self, attempt: Attempt) -> None:
        intent = Intent(attempt.endpoint, attempt.body, key=attempt.key)
        with contextlib.suppress(*_AWAY):
            async with asyncio.timeout(_ANSWER_S):
                reply = await self.random.choice(self._servers).send(intent)
                attempt.answered(reply.status, reply.raw or b"")

    async def _by_frame(self, attempt: Attempt) -> None:
        attempt.is_frame = True
        assert self._socket is not None
        frame = _FRAMES[attempt.endpoint]
        with contextlib.suppress(*_AWAY):
            async with asyncio.timeout(_ANSWER_S):
                reply = await self._socket.ask(
                    Intent(attempt.endpoint, attempt.body, frame, attempt.key)
                )
                attempt.answered(reply.status, orjson.dumps(reply.body))

    async def stay_connected(self) -> None:
        """Holds a socket for ever, on any server, and reads what it brings."""
        while True:
            with contextlib.suppress(*_AWAY):
                await self._hold_socket()
            await asyncio.sleep(self.random.uniform(*_RETRY_S))

    async def look_again(self) -> None:
        """Opens the socket anew and waits for its snapshot."""
        self.welcomed.clear()
        if self._socket is not None:
            await self._socket.close()
        await self.welcomed.wait()

    async def say(self, frame: dict[str, Any]) -> None:
        """Sends a frame that is not answered, if there is a socket."""
        if self._socket is not None:
            with contextlib.suppress(*_AWAY):
                await self._socket.send(frame)

    async def _hold_socket(self) -> None:
        async with asyncio.timeout(_ANSWER_S):
            socket = await Socket.open(self.random.choice(self._servers))
        try:
            async for frame in socket.frames():
                self._take(socket, frame)
        finally:
            self._socket = None
            await socket.close()

    def _take(self, socket: Socket, frame: dict[str, Any]) -> None:
        self._history.hear(self.user, frame)
        match frame["type"]:
            case "welcome":
                self.snapshot = frame["snapshot"]
                self._socket = socket
                self.welcomed.set()
            case "offer":
                self.offers.append(frame["trip"]["id"])
