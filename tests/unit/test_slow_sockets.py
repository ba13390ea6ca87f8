"""WebSockets of clients that do not read, have gone half-way or never come further: cut off in time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from dispatcher.web import websocket_connection
from tests.unit.http_harness import DRIVER
from tests.unit.websocket_harness import HANDSHAKE, App, open_app

#: More than the buffers of both ends take.
_FRAME = b'{"type":"trip","filling":"' + b"x" * 60_000 + b'"}'


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with open_app() as opened:
        yield opened


class RawSocket:
    """A WebSocket by hand, with a small buffer, which reads only what it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    async def open(cls, app: App) -> RawSocket:
        address = urlsplit(app.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (address.hostname, address.port))
        headers = {**HANDSHAKE, "Host": "x", "Authorization": f"Bearer {DRIVER}"}
        lines = [
            f"GET {address.path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while b"welcome" not in head:
            head += await loop.sock_recv(sock, 1_024)
        return cls(sock)


async def _gone(app: App) -> None:
    async with asyncio.timeout(20):
        while app.presence.present or app.endpoint._connections:
            await asyncio.sleep(0.005)


def _connection(app: App) -> Any:
    (connection,) = app.endpoint._connections
    return connection


async def test_one_that_never_reads_is_cut_by_its_queue(app: App) -> None:
    raw = await RawSocket.open(app)
    connection = _connection(app)
    for _ in range(1_000):
        connection.send(_FRAME)
    assert len(connection._queue) <= websocket_connection._MAX_QUEUED_FRAMES + 1
    await _gone(app)
    raw.sock.close()


async def test_one_that_never_reads_is_cut_by_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_connection, "_SEND_TIMEOUT_S", 0.05)
    raw = await RawSocket.open(app)
    for _ in range(100):  # below the queue's bound, and above what buffers hold
        _connection(app).send(_FRAME)
    await _gone(app)
    raw.sock.close()


async def test_one_that_says_nothing_any_more_is_cut_though_its_end_is_open(app: App) -> None:
    raw = await RawSocket.open(app)
    raw.sock.shutdown(socket.SHUT_WR)
    await _gone(app)
    raw.sock.close()


async def test_one_that_never_says_who_it_is(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.web.websocket_admission._AUTH_S", 0.05)
    silent = await app.connect(token=None)
    message = await silent.receive(timeout=20)
    while message.type.name == "TEXT":
        message = await silent.receive(timeout=20)
    assert silent.close_code == 4401
